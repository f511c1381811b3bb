// The attention core against plain softmax, gradients against finite differences, masks, and the key/value
// store.
#include "nn/attention.hpp"
#include "nn/detail/attention_functions.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/error.hpp"
#include "support/finite_difference.hpp"

namespace athanor::nn {
namespace {

using tests::expect_close;
using tests::gradients_match;
using tests::random_tensor;
using Inputs = std::vector<at::Tensor>;

/// Plain attention with the mask's meaning spelled out per pair.
at::Tensor plain_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const AttentionMask& mask) {
  const std::int64_t repeats = q.size(2) / k.size(2);
  const at::Tensor kh = k.repeat_interleave(repeats, 2).transpose(1, 2);
  const at::Tensor vh = v.repeat_interleave(repeats, 2).transpose(1, 2);
  at::Tensor scores =
      at::matmul(q.transpose(1, 2), kh.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor forbidden = at::zeros({q.size(0), 1, q.size(1), k.size(1)}, at::kBool);
  for (std::int64_t b = 0; b < q.size(0); ++b) {
    for (std::int64_t i = 0; i < q.size(1); ++i) {
      for (std::int64_t j = 0; j < k.size(1); ++j) {
        bool allowed = !mask.causal || j <= i + k.size(1) - q.size(1);
        if (mask.query_documents_BS.defined()) {
          allowed = allowed && mask.query_documents_BS[b][i].item<std::int64_t>() ==
                                   mask.key_documents_BL[b][j].item<std::int64_t>();
        }
        forbidden[b][0][i][j].fill_(!allowed);
      }
    }
  }
  scores = scores.masked_fill(forbidden, -std::numeric_limits<double>::infinity());
  return at::matmul(scores.softmax(-1), vh).transpose(1, 2);
}

using Attention = at::Tensor (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                 const AttentionMask&);

struct Case {
  std::int64_t queries, keys, heads, kv_heads;
  bool documents;
};

AttentionMask mask_of(const Case& c) {
  AttentionMask mask;
  if (c.documents) {
    mask.key_documents_BL = at::arange(2 * c.keys, at::kLong).view({2, c.keys}).floor_divide(3);
    mask.query_documents_BS = mask.key_documents_BL.narrow(1, c.keys - c.queries, c.queries);
  }
  return mask;
}

at::Tensor one_thread(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const AttentionMask& mask) {
  return detail::one_thread_attention(q, k, v, mask, {}, nullptr);
}
at::Tensor threaded(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const AttentionMask& mask) {
  return detail::threaded_attention(q, k, v, mask, {}, nullptr);
}
at::Tensor of_device(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) {
  return detail::device_attention(q, k, v, mask, {});  // on the CPU here
}

class AttentionCoreCases : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionCoreCases,
                         ::testing::Values(Case{7, 7, 2, 2, false}, Case{7, 7, 6, 2, false},
                                           Case{7, 7, 4, 1, true}, Case{1, 5, 4, 2, false},
                                           Case{3, 8, 4, 2, false}, Case{3, 8, 4, 4, true},
                                           Case{1, 1, 2, 1, false}));

TEST_P(AttentionCoreCases, MatchesPlainSoftmaxAndFiniteDifferences) {
  const Case c = GetParam();
  const AttentionMask mask = mask_of(c);
  const Inputs inputs = {random_tensor({2, c.queries, c.heads, 6}, 1),
                         random_tensor({2, c.keys, c.kv_heads, 6}, 2),
                         random_tensor({2, c.keys, c.kv_heads, 6}, 3)};
  for (const Attention attention : {one_thread, threaded, of_device}) {
    const at::Tensor y = attention(inputs[0], inputs[1], inputs[2], mask);
    expect_close(y, plain_attention(inputs[0], inputs[1], inputs[2], mask), 1e-13, "y");
    const at::Tensor weight = random_tensor(y.sizes(), 9);
    EXPECT_TRUE(gradients_match(
        [&](const Inputs& in) { return (attention(in[0], in[1], in[2], mask) * weight).sum(); }, inputs));
  }
}

/// Gradients of the sum of squares of y, fresh for each call.
std::vector<at::Tensor> gradients_of_squares(Attention attention, Inputs& inputs) {
  attention(inputs[0], inputs[1], inputs[2], {}).to(at::kFloat).pow(2).sum().backward();
  std::vector<at::Tensor> gradients;
  for (at::Tensor& input : inputs) {
    gradients.push_back(input.grad().clone());
    input.mutable_grad() = at::Tensor();
  }
  return gradients;
}

TEST(AttentionCore, LongSequencesInEveryTypeAndTwiceTheSameBits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    Inputs inputs;
    for (std::uint64_t i = 0; i < 3; ++i) {
      inputs.push_back(random_tensor({2, 150, i == 0 ? 4 : 2, 16}, i, dtype).requires_grad_());
    }
    const at::Tensor expected =
        plain_attention(inputs[0].to(at::kDouble), inputs[1].to(at::kDouble), inputs[2].to(at::kDouble), {});
    for (const Attention attention : {one_thread, threaded}) {
      expect_close(attention(inputs[0], inputs[1], inputs[2], {}), expected,
                   dtype == at::kFloat ? 1e-6 : 1e-2, "y");
      const std::vector<at::Tensor> first = gradients_of_squares(attention, inputs);
      const std::vector<at::Tensor> second = gradients_of_squares(attention, inputs);
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(at::equal(first[i], second[i]));
      }
    }
  }
}

TEST(AttentionCore, NoSequences) {
  const at::Tensor q = at::empty({0, 4, 2, 6}, at::kDouble).requires_grad_();
  const at::Tensor k = at::empty({0, 4, 1, 6}, at::kDouble).requires_grad_();
  attention_core(q, k, k, {}).sum().backward();
  EXPECT_EQ(q.grad().numel(), 0);
}

/// Keeps keys and values of each layer as one growing tensor.
class GrowingStore : public KeyValueStore {
 public:
  KeysValues append(std::int64_t layer, const at::Tensor& k, const at::Tensor& v) override {
    EXPECT_EQ(layer, 3);
    all_.k_BLGC = all_.k_BLGC.defined() ? at::cat({all_.k_BLGC, k}, 1) : k.clone();
    all_.v_BLGC = all_.v_BLGC.defined() ? at::cat({all_.v_BLGC, v}, 1) : v.clone();
    return all_;
  }

 private:
  KeysValues all_;
};

struct SmallAttention {
  explicit SmallAttention(bool qk_norm = true)
      : parameters({.seed = 3, .dtype = at::kDouble}),
        attention(options(qk_norm), "attention.", parameters, grid) {
    for (const auto& parameter : parameters.all()) {
      const at::NoGradGuard no_grad;
      parameter->value.add_(random_tensor(parameter->value.sizes(), parameter->value.numel()), 0.3);
    }
  }
  static AttentionOptions options(bool qk_norm) {
    return {.hidden = 10, .heads = 4, .kv_heads = 2, .head_dim = 6, .qk_norm = qk_norm};
  }
  /// Positions [first, first + count) of `x` through the layer.
  at::Tensor run(const at::Tensor& x, std::int64_t first, std::int64_t count, std::int64_t padding,
                 KeyValueStore* store, const at::Tensor& documents = {}) {
    TokenBatch batch;
    batch.real_seq = count;
    batch.documents_BS = documents;
    const at::Tensor padded = at::constant_pad_nd(x.narrow(1, first, count), {0, 0, 0, padding});
    batch.positions_BS =
        at::arange(first, first + count + padding, at::kLong).expand({x.size(0), count + padding});
    const RotaryTables rotary = rotary_tables(batch.positions_BS, 6, 100.0, at::kDouble);
    return attention.forward(padded, {&batch, &rotary, store, 3});
  }
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters;
  CausalAttention attention;
};

TEST(CausalAttention, GradientsMatchFiniteDifferences) {
  for (const bool qk_norm : {true, false}) {
    SmallAttention small(qk_norm);
    const at::Tensor x = random_tensor({2, 5, 10}, 1), weight = random_tensor({2, 5, 10}, 2);
    const at::Tensor leaf = x.clone().requires_grad_();
    std::vector<at::Tensor> buffers;
    for (const auto& parameter : small.parameters.all()) {
      parameter->grad.attach(at::empty_like(parameter->value.detach()));
    }
    (small.run(leaf, 0, 5, 0, nullptr) * weight).sum().backward();
    std::vector<tests::CheckedGradient> checked = {{leaf.detach(), leaf.grad(), "x"}};
    for (const auto& parameter : small.parameters.all()) {
      EXPECT_FALSE(parameter->value.grad().defined()) << parameter->name;
      checked.push_back({parameter->value.detach(), parameter->grad.buffer(), parameter->name});
    }
    EXPECT_EQ(checked.size(), qk_norm ? 6u : 4u);
    const auto value = [&] { return (small.run(leaf, 0, 5, 0, nullptr) * weight).sum().item<double>(); };
    EXPECT_TRUE(tests::gradients_match_values(value, checked));
  }
}

TEST(CausalAttention, StoreInPiecesEqualsTheWholeSequence) {
  SmallAttention small;
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({2, 7, 10}, 1);
  const at::Tensor whole = small.run(x, 0, 7, 0, nullptr);
  GrowingStore store;
  const at::Tensor prompt =
      small.run(x, 0, 4, 2, &store);  // two padding positions are neither stored nor seen
  expect_close(prompt.narrow(1, 0, 4), whole.narrow(1, 0, 4), 1e-13, "prompt");
  expect_close(small.run(x, 4, 1, 1, &store).narrow(1, 0, 1), whole.narrow(1, 4, 1), 1e-13, "one token");
  expect_close(small.run(x, 5, 2, 0, &store), whole.narrow(1, 5, 2), 1e-13, "two tokens");
}

TEST(CausalAttention, DocumentsDoNotSeeEachOther) {
  SmallAttention small;
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({1, 7, 10}, 1);
  const at::Tensor documents = at::tensor({0, 0, 0, 1, 1, 1, 1}, at::kLong).view({1, 7});
  const at::Tensor together = small.run(x, 0, 7, 0, nullptr, documents);
  expect_close(together.narrow(1, 0, 3), small.run(x, 0, 3, 0, nullptr), 1e-13, "first document");
  expect_close(together.narrow(1, 3, 4), small.run(x, 3, 4, 0, nullptr), 1e-13, "second document");
}

TEST(CausalAttention, RefusesHeadsThatDoNotFit) {
  parallel::ParameterMap parameters({.dtype = at::kDouble});
  const parallel::ProcessGrid grid;
  AttentionOptions options = SmallAttention::options(true);
  options.kv_heads = 3;
  EXPECT_THROW(CausalAttention(options, "a.", parameters, grid), base::ConfigError);
}

}  // namespace
}  // namespace athanor::nn
