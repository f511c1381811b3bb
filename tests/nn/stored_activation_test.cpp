// What is kept in FP8 for backward: the numbers and bytes of it, and each function's gradients against plain
// formulae in which the kept tensors are rounded explicitly.
#include "nn/stored_activation.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "kernels/fp8.hpp"
#include "nn/attention.hpp"
#include "nn/feed_forward.hpp"
#include "nn/functional.hpp"
#include "support/finite_difference.hpp"

namespace athanor::nn {
namespace {

using base::Fp8Format;
using tests::expect_close;
using tests::random_tensor;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// What becomes of x: each block of 128 of a token by the plain kernels.
at::Tensor rounded(const at::Tensor& x, Fp8Format format) {
  const std::int64_t tokens = x.dim() == 2 ? x.size(0) : x.size(0) * x.size(1);
  const at::Tensor in = x.detach().to(at::kFloat).contiguous();
  const auto rows = kernels::Fp8Rows::apart(tokens, tokens == 0 ? 0 : x.numel() / tokens);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(x.numel()));
  std::vector<float> scales(static_cast<std::size_t>(tokens * rows.scale_stride));
  kernels::Fp8Counts counts;
  at::Tensor out = at::empty_like(in);
  kernels::reference::quantize_fp8_blocks(in.const_data_ptr<float>(), rows, format, codes.data(),
                                          scales.data(), counts);
  kernels::reference::dequantize_fp8_blocks(codes.data(), scales.data(), rows, format,
                                            out.mutable_data_ptr<float>());
  return out.to(x.scalar_type());
}

/// Numbers that FP8 holds exactly: every block has the format's largest, times a power of two.
at::Tensor representable(at::IntArrayRef shape, std::uint64_t seed, Fp8Format format = Fp8Format::e4m3) {
  const at::Tensor random = random_tensor(shape, seed).mul(300);
  at::Tensor x = at::empty(shape, at::kFloat);
  float* out = x.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const auto value = static_cast<float>(random.const_data_ptr<double>()[i]);
    const float bounded = std::max(-448.0f, std::min(448.0f, value));
    out[i] = i % 16 == 0
                 ? kernels::reference::decode_fp8(0x7e - (format == Fp8Format::e5m2 ? 3 : 0), format)
                 : kernels::reference::decode_fp8(kernels::reference::encode_fp8(bounded, format), format);
  }
  return x.mul(0.015625 / (format == Fp8Format::e4m3 ? 1.0 : 128.0));
}

TEST(StoredActivation, IsRoundedTokenByToken) {
  for (const Fp8Format format : {Fp8Format::e4m3, Fp8Format::e5m2}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const std::vector<std::vector<std::int64_t>> shapes = {{5, 300}, {2, 3, 128}, {2, 3, 4, 40},
                                                             {0, 64},  {2, 0, 7},   {3, 0}};
      for (const std::vector<std::int64_t>& shape : shapes) {
        const at::Tensor x = random_tensor(shape, 1, type);
        const StoredActivation kept = store_activation(x, format);
        EXPECT_TRUE(kept.is_fp8());
        EXPECT_EQ(kept.data.sizes(), x.sizes());
        const at::Tensor back = restore_activation(kept, type);
        EXPECT_EQ(back.scalar_type(), type);
        EXPECT_TRUE(back.equal(rounded(x, format))) << c10::toString(type) << " " << x.sizes();
        expect_close(back, x, format == Fp8Format::e4m3 ? 0.0625 : 0.125, "kept");
      }
    }
  }
}

TEST(StoredActivation, TakesHalfOfFp16) {
  const at::Tensor x = random_tensor({512, 256}, 1, at::kHalf);
  const StoredActivation kept = store_activation(x, Fp8Format::e4m3);
  EXPECT_EQ(kept.bytes(), 512 * (256 + 2 * 4));
  EXPECT_LE(static_cast<double>(kept.bytes()), 0.55 * static_cast<double>(x.nbytes()));
  EXPECT_EQ(store_activation(x, {}).bytes(), static_cast<std::int64_t>(x.nbytes()));
  EXPECT_TRUE(store_activation(x, {}).data.is_same(x));
}

TEST(StoredActivation, KeepsPartsOfRowsOneByOne) {
  const at::Tensor x = random_tensor({6, 130}, 1, at::kFloat);
  const StoredActivation rows = allocate_rows(6, 130, x.options(), Fp8Format::e5m2);
  store_rows(rows.narrow(0, 2), x.narrow(0, 0, 2));
  store_rows(rows.narrow(2, 0), x.narrow(0, 2, 0));
  store_rows(rows.narrow(2, 4), x.narrow(0, 2, 4));
  EXPECT_TRUE(restore_activation(rows, at::kFloat).equal(rounded(x, Fp8Format::e5m2)));
  const at::Tensor scratch = at::zeros({4, 130}, at::kFloat);
  EXPECT_TRUE(restore_rows(rows.narrow(3, 2), scratch).equal(rounded(x, Fp8Format::e5m2).narrow(0, 3, 2)));
  EXPECT_TRUE(restore_rows({x, at::Tensor()}, scratch).is_same(x));
}

TEST(StoredActivation, WhatIsNotFiniteSurvives) {
  for (const float bad : {nan, infinity, -infinity}) {
    at::Tensor x = random_tensor({2, 300}, 1, at::kFloat);
    x[1][140] = bad;
    const at::Tensor back = restore_activation(store_activation(x, Fp8Format::e4m3), at::kFloat);
    EXPECT_TRUE(at::isfinite(back[0]).all().item<bool>());
    EXPECT_TRUE(at::isnan(back[1].narrow(0, 128, 128)).all().item<bool>());
    EXPECT_TRUE(at::isfinite(back[1].narrow(0, 0, 128)).all().item<bool>());
  }
}

TEST(StoredActivation, RefusesF64) {
  EXPECT_THROW(store_activation(random_tensor({2, 4}, 1), Fp8Format::e4m3), base::InternalError);
}

TEST(StoredActivation, NothingIsRoundedWithoutABackwardPass) {
  const at::Tensor x = random_tensor({3, 4, 8}, 1, at::kFloat), w = at::ones({8}, at::kFloat);
  const std::int64_t before = stored_totals().numbers;
  {
    const at::NoGradGuard no_grad;
    rms_norm(x, {w}, 1e-6, Fp8Format::e4m3);
    swiglu(x, Fp8Format::e4m3);
    EXPECT_FALSE(keep_if_backward(Fp8Format::e4m3).has_value());
  }
  EXPECT_EQ(stored_totals().numbers, before);
  rms_norm(x, {w}, 1e-6, Fp8Format::e4m3);
  EXPECT_EQ(stored_totals().numbers, before + x.numel());
}

/// Value and gradients of function(inputs) weighed by fixed numbers.
using Function = std::function<at::Tensor(const std::vector<at::Tensor>&, const Keep&)>;
std::vector<at::Tensor> run(const Function& function, const std::vector<at::Tensor>& inputs,
                            const Keep& keep) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) {
    leaves.push_back(input.detach().clone().requires_grad_());
  }
  const at::Tensor y = function(leaves, keep);
  (y * random_tensor(y.sizes(), 99, y.scalar_type())).sum().backward();
  std::vector<at::Tensor> results = {y.detach()};
  for (const at::Tensor& leaf : leaves) {
    results.push_back(leaf.grad());
  }
  return results;
}

RotaryTables tables_of(std::int64_t batch, std::int64_t seq, std::int64_t width) {
  const at::Tensor positions = at::arange(seq, at::kLong).expand({batch, seq}).contiguous();
  return rotary_tables(positions, width, 1000.0, at::kFloat);
}

const std::vector<std::pair<const char*, Function>> functions = {
    {"linear",
     [](const std::vector<at::Tensor>& in, const Keep& keep) {
       return nn::linear(in[0], {in[1].view({-1, in[1].size(-1)}).narrow(0, 0, 6)},
                         store_activation(in[0], keep));
     }},
    {"rms_norm",
     [](const std::vector<at::Tensor>& in, const Keep& keep) {
       return rms_norm(in[0], {in[1].flatten().narrow(0, 0, in[0].size(-1))}, 1e-6, keep);
     }},
    {"swiglu", [](const std::vector<at::Tensor>& in,
                  const Keep& keep) { return swiglu(in[0], keep) + 0 * in[1].sum(); }},
    {"head_norm_rotary", [](const std::vector<at::Tensor>& in, const Keep& keep) {
       const at::Tensor x = in[0].unflatten(2, {4, in[0].size(2) / 4});
       return head_norm_rotary(x, {in[1].flatten().narrow(0, 0, x.size(3))}, 1e-6,
                               tables_of(x.size(0), x.size(1), x.size(3)), keep);
     }}};

// Forward is not rounded, and of numbers that FP8 holds nothing is lost: the same bits in every gradient.
TEST(StoredGradients, AreExactForNumbersThatFp8Holds) {
  for (const Fp8Format format : {Fp8Format::e4m3, Fp8Format::e5m2}) {
    for (const auto& [name, function] : functions) {
      for (const std::int64_t batch : {2, 0}) {
        const std::vector<at::Tensor> inputs = {representable({batch, 3, 128}, 1, format),
                                                random_tensor({6, 128}, 2, at::kFloat)};
        const std::vector<at::Tensor> full = run(function, inputs, {});
        const std::vector<at::Tensor> kept = run(function, inputs, format);
        for (std::size_t i = 0; i < full.size(); ++i) {
          EXPECT_TRUE(kept[i].equal(full[i])) << name << " tensor " << i << " batch " << batch;
        }
      }
    }
  }
}

TEST(StoredGradients, FollowWithinTheRoundingAndForwardIsNotRounded) {
  for (const auto& [name, function] : functions) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      if (type == at::kBFloat16 && std::string(name) == "head_norm_rotary") {
        continue;  // its tables are those of f32 in both
      }
      const std::vector<at::Tensor> inputs = {random_tensor({4, 16, 128}, 1, type),
                                              random_tensor({6, 128}, 2, type)};
      const std::vector<at::Tensor> full = run(function, inputs, {});
      const std::vector<at::Tensor> kept = run(function, inputs, Fp8Format::e4m3);
      EXPECT_TRUE(kept[0].equal(full[0])) << name;
      for (std::size_t i = 1; i < full.size(); ++i) {
        expect_close(kept[i], full[i], 0.0625, name);
      }
    }
  }
}

TEST(StoredGradients, OfALinearAreThoseOfTheRoundedRows) {
  const at::Tensor x = random_tensor({2, 3, 20}, 1, at::kFloat).requires_grad_();
  const at::Tensor w = random_tensor({5, 20}, 2, at::kFloat).requires_grad_();
  const at::Tensor dy = random_tensor({2, 3, 5}, 3, at::kFloat);
  (nn::linear(x, {w}, store_activation(x, Fp8Format::e4m3)) * dy).sum().backward();
  const at::Tensor rows = rounded(x, Fp8Format::e4m3).view({6, 20});
  EXPECT_TRUE(w.grad().equal(at::mm(dy.view({6, 5}).t(), rows)));
  EXPECT_TRUE(x.grad().equal(at::mm(dy.view({6, 5}), w.detach()).view({2, 3, 20})));
}

TEST(StoredGradients, OfANormUseTheExactStatistics) {
  const at::Tensor x = random_tensor({7, 40}, 1, at::kFloat).requires_grad_();
  const at::Tensor w = random_tensor({40}, 2, at::kFloat).requires_grad_();
  const at::Tensor dy = random_tensor({7, 40}, 3, at::kFloat);
  (rms_norm(x, {w}, 1e-5, Fp8Format::e5m2) * dy).sum().backward();
  const at::NoGradGuard no_grad;
  const at::Tensor rstd = (x.pow(2).mean(-1, true) + 1e-5).rsqrt();
  const at::Tensor normed = rounded(x, Fp8Format::e5m2) * rstd;
  const at::Tensor g = dy * w;
  expect_close(x.grad(), rstd * (g - normed * (g * normed).mean(-1, true)), 1e-5, "dx");
  expect_close(w.grad(), (dy * normed).sum(0), 1e-5, "dweight");
}

/// Gradients of attention from rounded q, k, v and y and the exact log-sum-exp, for equal numbers of heads.
std::vector<at::Tensor> plain_attention_backward(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& v, const at::Tensor& y,
                                                 const at::Tensor& dy, const Fp8Format& format) {
  const auto heads = [](const at::Tensor& x) { return x.detach().transpose(1, 2); };
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor blocked = at::ones({q.size(1), q.size(1)}, at::kBool).triu(1);
  const auto scores = [&](const at::Tensor& a, const at::Tensor& b) {
    return at::matmul(heads(a), heads(b).transpose(2, 3)).mul(scale).masked_fill(blocked, -infinity);
  };
  const at::Tensor lse = scores(q, k).logsumexp(-1, true);
  const at::Tensor qr = rounded(q, format), kr = rounded(k, format), vr = rounded(v, format);
  const at::Tensor p = (scores(qr, kr) - lse).exp();
  const at::Tensor dp = at::matmul(heads(dy), heads(vr).transpose(2, 3));
  const at::Tensor delta = (heads(dy) * heads(rounded(y, format))).sum(-1, true);
  const at::Tensor ds = p * (dp - delta) * scale;
  return {at::matmul(ds, heads(kr)).transpose(1, 2),
          at::matmul(ds.transpose(2, 3), heads(qr)).transpose(1, 2),
          at::matmul(p.transpose(2, 3), heads(dy)).transpose(1, 2)};
}

TEST(StoredGradients, OfAttentionAreThoseOfWhatWasKept) {
  const int threads = at::get_num_threads();
  for (const int used : {1, 2}) {  // our kernel, and ATen's
    at::set_num_threads(used);
    std::vector<at::Tensor> in;
    for (std::uint64_t i = 0; i < 3; ++i) {
      in.push_back(random_tensor({2, 9, 4, 8}, i, at::kFloat).requires_grad_());
    }
    const at::Tensor dy = random_tensor({2, 9, 4, 8}, 9, at::kFloat);
    StoredActivation kept_y;
    const at::Tensor y = attention_core(in[0], in[1], in[2], {}, Fp8Format::e4m3, &kept_y);
    EXPECT_TRUE(y.equal(attention_core(in[0], in[1], in[2], {})));
    EXPECT_TRUE(restore_activation(kept_y, at::kFloat).equal(rounded(y, Fp8Format::e4m3)));
    (y * dy).sum().backward();
    const std::vector<at::Tensor> expected =
        plain_attention_backward(in[0], in[1], in[2], y, dy, Fp8Format::e4m3);
    for (std::size_t i = 0; i < 3; ++i) {
      expect_close(in[i].grad(), expected[i], 2e-5, "input " + std::to_string(i));
    }
  }
  at::set_num_threads(threads);
}

/// Layers whose parameters have gradient buffers.
struct Layers {
  explicit Layers(const Keep& keep, std::int64_t kv_heads = 2)
      : attention({.hidden = 32, .heads = 4, .kv_heads = kv_heads, .head_dim = 8, .keep = keep}, "a.",
                  parameters, grid),
        ffn({.hidden = 32, .ffn = 48, .keep = keep}, "f.", parameters, grid) {
    for (const auto& parameter : parameters.all()) {
      parameter->grad.attach(at::zeros(parameter->value.sizes(), at::kFloat));
    }
    batch.tokens_BS = at::zeros({2, 6}, at::kLong);
    batch.positions_BS = at::arange(6, at::kLong).expand({2, 6}).contiguous();
    batch.real_seq = 6;
  }
  std::vector<at::Tensor> attend(const at::Tensor& values) {
    const RotaryTables tables = tables_of(2, 6, 8);
    return gradients(values, [&](const at::Tensor& x) {
      AttentionContext context;
      context.batch = &batch;
      context.rotary = &tables;
      return attention.forward(x, context);
    });
  }
  std::vector<at::Tensor> feed_forward(const at::Tensor& values) {
    return gradients(values, [&](const at::Tensor& x) { return ffn.forward(x); });
  }
  std::vector<at::Tensor> gradients(const at::Tensor& values,
                                    const std::function<at::Tensor(const at::Tensor&)>& layer) {
    const at::Tensor x = values.clone().requires_grad_();
    const at::Tensor y = layer(x);
    (y * random_tensor(y.sizes(), 5, at::kFloat)).sum().backward();
    std::vector<at::Tensor> all = {y.detach(), x.grad()};
    for (const auto& parameter : parameters.all()) {
      parameter->grad.finish();
      all.push_back(parameter->grad.buffer().clone());
      parameter->grad.reset();
    }
    return all;
  }

  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters{{3, at::kFloat, true}};
  TokenBatch batch;
  CausalAttention attention;
  FeedForward ffn;
};

TEST(StoredLayers, KeepEachTensorOnceAndFollowTheFullGradients) {
  const at::Tensor x = random_tensor({2, 6, 32}, 1, at::kFloat);
  Layers full({}), kept(Fp8Format::e4m3);
  const auto follows = [](const std::vector<at::Tensor>& actual, const std::vector<at::Tensor>& expected) {
    EXPECT_TRUE(actual[0].equal(expected[0]));
    for (std::size_t i = 1; i < actual.size(); ++i) {
      const double error = (actual[i] - expected[i]).norm().item<double>();
      EXPECT_LE(error, 0.06 * expected[i].norm().item<double>()) << "gradient " << i;
    }
  };
  const std::int64_t before = stored_totals().numbers;
  follows(kept.attend(x), full.attend(x));
  // Input, q and k before their norm and after, v, and the result: of 12 tokens.
  EXPECT_EQ(stored_totals().numbers - before, 12 * (32 + 2 * (32 + 16) + 16 + 32));
  const std::int64_t between = stored_totals().numbers;
  follows(kept.feed_forward(x), full.feed_forward(x));
  EXPECT_EQ(stored_totals().numbers - between, 12 * (32 + 96 + 48));
}

TEST(StoredLayers, AGradientOfWhatIsNotFiniteIsNotFinite) {
  for (const float bad : {nan, infinity}) {
    Layers kept(Fp8Format::e4m3);
    at::Tensor x = random_tensor({2, 6, 32}, 1, at::kFloat);
    x[1][5][3] = bad;
    for (const std::vector<at::Tensor>& all : {kept.attend(x), kept.feed_forward(x)}) {
      bool finite = true;
      for (std::size_t i = 2; i < all.size(); ++i) {
        finite = finite && at::isfinite(all[i]).all().item<bool>();
      }
      EXPECT_FALSE(finite);
    }
  }
}

}  // namespace
}  // namespace athanor::nn
