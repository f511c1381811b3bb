// States handed out by the layers, the view of the head's logits, and what a frozen model keeps in memory.
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/error.hpp"
#include "model/model_fixture.hpp"
#include "nn/attention.hpp"
#include "support/finite_difference.hpp"

namespace athanor::model {
namespace {

using tests::random_tensor;

/// Weighted sum of everything captured: the weight of element j of tensor i is drawn from seed 40 + i.
at::Tensor captured_objective(const LayerCapture& capture) {
  std::vector<at::Tensor> states = capture.hidden_BsD;
  for (const nn::QueriesKeys& layer : capture.attention) {
    states.insert(states.end(), {layer.q_BSHC, layer.k_BSGC});
  }
  at::Tensor sum = at::zeros({}, at::kDouble);
  for (std::size_t i = 0; i < states.size(); ++i) {
    sum = sum + (states[i] * states[i] * random_tensor(states[i].sizes(), 40 + i)).sum();
  }
  return sum;
}

/// What training on captured states computes: with the head's loss and balance terms, or by themselves.
at::Tensor objective_with(Fixture& fixture, LayerCapture& capture, bool head) {
  ForwardContext context = fixture.context();
  context.capture = &capture;
  const auto hidden =
      fixture.model.blocks(fixture.model.embed(fixture.batch, context), fixture.batch, context);
  const at::Tensor captured = captured_objective(capture);
  return head ? captured + hidden.aux + fixture.model.head_loss(hidden.h_BsD, fixture.batch).sum : captured;
}

void backward_of(Fixture& fixture, LayerCapture capture, bool head) {
  for (const auto& parameter : fixture.parameters.all()) {
    parameter->grad.reset();
  }
  torch::autograd::backward({objective_with(fixture, capture, head)}, {});
  for (const auto& parameter : fixture.parameters.all()) {
    parameter->grad.finish();
  }
}

TEST(LayerCapture, HiddenStatesAreThoseBetweenRangesOfLayers) {
  const TransformerConfig config = small_config();
  Fixture whole(config);
  parallel::ParameterMap first_map({3, at::kDouble, true}), second_map({3, at::kDouble, true});
  const Transformer first(config, resolve_layers(config), {0, 1, true, false}, first_map, whole.grid);
  const Transformer second(config, resolve_layers(config), {1, 2, false, false}, second_map, whole.grid);
  at::NoGradGuard no_grad;
  ForwardContext context = whole.context();
  context.statistics = nullptr;
  context.training = false;
  const auto after_first = first.blocks(first.embed(whole.batch, context), whole.batch, context).h_BsD;
  const auto after_second = second.blocks(after_first, whole.batch, context).h_BsD;
  const auto plain = whole.model.blocks(whole.model.embed(whole.batch, context), whole.batch, context).h_BsD;

  LayerCapture capture{{1, 0, 1}, {}, {}, {}};
  context.capture = &capture;
  for (int pass = 0; pass < 2; ++pass) {  // every pass writes afresh
    const auto out = whole.model.blocks(whole.model.embed(whole.batch, context), whole.batch, context).h_BsD;
    EXPECT_TRUE(at::equal(out, plain));
    ASSERT_EQ(capture.hidden_BsD.size(), 3U);
    EXPECT_TRUE(at::equal(capture.hidden_BsD[0], after_second));
    EXPECT_TRUE(at::equal(capture.hidden_BsD[1], after_first));
    EXPECT_TRUE(at::equal(capture.hidden_BsD[2], after_second));
    EXPECT_TRUE(capture.attention.empty());
  }

  // A range counts layers as the whole model does, and leaves those of other ranges undefined.
  LayerCapture part{{0, 1}, {0, 1}, {}, {}};
  context.capture = &part;
  second.blocks(after_first, whole.batch, context);
  EXPECT_FALSE(part.hidden_BsD[0].defined());
  EXPECT_FALSE(part.attention[0].q_BSHC.defined());
  EXPECT_TRUE(at::equal(part.hidden_BsD[1], after_second));
  EXPECT_TRUE(part.attention[1].k_BSGC.defined());
}

TEST(LayerCapture, QueriesAndKeysAreThoseTheAttentionUses) {
  for (const bool qk_norm : {true, false}) {
    TransformerConfig config = small_config();
    config.qk_norm = qk_norm;
    Fixture fixture(config);
    at::NoGradGuard no_grad;
    ForwardContext context = fixture.context();
    LayerCapture capture{{0}, {1}, {}, {}};
    context.capture = &capture;
    fixture.model.blocks(fixture.model.embed(fixture.batch, context), fixture.batch, context);

    const auto value = [&](const char* name) {
      const auto parameter = fixture.parameters.find(std::string("layers.1.attention") + name);
      return parameter ? nn::Weight{parameter->value.detach(), nullptr} : nn::Weight{};
    };
    const at::Tensor x = nn::rms_norm(capture.hidden_BsD[0], value("_norm.weight"), config.norm_eps);
    const nn::RotaryTables tables =
        nn::rotary_tables(fixture.batch.positions_BS, 4, config.rope_theta, at::kDouble);
    const at::Tensor q = at::matmul(x, value(".q.weight").tensor.t()).view({3, 9, 4, 4});
    const at::Tensor k = at::matmul(x, value(".kv.weight").tensor[0].t()).view({3, 9, 2, 4});
    tests::expect_close(capture.attention[0].q_BSHC,
                        nn::head_norm_rotary(q, value(".q_norm.weight"), config.norm_eps, tables), 1e-12,
                        "queries");
    tests::expect_close(capture.attention[0].k_BSGC,
                        nn::head_norm_rotary(k, value(".k_norm.weight"), config.norm_eps, tables), 1e-12,
                        "keys");
  }
}

TEST(LayerCapture, GradientsThroughCapturedStatesMatchFiniteDifferences) {
  for (const bool recompute : {false, true}) {
    for (const bool head : {false, true}) {
      TransformerConfig config = small_config();
      config.recompute = recompute;
      Fixture fixture(config);
      LayerCapture capture{{0, 1}, {1, 0}, {}, {}};
      backward_of(fixture, capture, head);
      std::vector<tests::CheckedGradient> checked;
      for (const auto& parameter : fixture.parameters.all()) {
        checked.push_back({parameter->value.detach(), parameter->grad.buffer(), parameter->name});
      }
      tests::FiniteDifferenceOptions options;
      options.step = 1e-6;
      options.tolerance = 2e-6;
      options.absolute = 1e-6;
      options.max_elements = 3;
      const auto value = [&] { return objective_with(fixture, capture, head).item<double>(); };
      EXPECT_TRUE(tests::gradients_match_values(value, checked, options))
          << "recompute " << recompute << ", head " << head;
    }
  }
}

TEST(LayerCapture, RecomputationGivesTheSameStatesAndGradientsAndCountsOnce) {
  TransformerConfig config = small_config();
  config.dropout = 0.2;
  Fixture kept(config);
  config.recompute = true;
  Fixture repeated(config);
  const LayerCapture capture{{0, 1}, {1}, {}, {}};
  LayerCapture of_kept = capture, of_repeated = capture;
  EXPECT_TRUE(at::equal(objective_with(kept, of_kept, true), objective_with(repeated, of_repeated, true)));
  EXPECT_TRUE(at::equal(of_kept.hidden_BsD[1], of_repeated.hidden_BsD[1]));
  EXPECT_TRUE(at::equal(of_kept.attention[0].q_BSHC, of_repeated.attention[0].q_BSHC));
  EXPECT_TRUE(of_repeated.attention[0].k_BSGC.requires_grad());
  backward_of(kept, capture, true);
  backward_of(repeated, capture, true);
  for (std::size_t i = 0; i < kept.parameters.all().size(); ++i) {
    tests::expect_close(repeated.parameters.all()[i]->grad.buffer(), kept.parameters.all()[i]->grad.buffer(),
                        1e-13, kept.parameters.all()[i]->name);
  }
  EXPECT_EQ(repeated.statistics[1].counts_E.sum().item<std::int64_t>(), 27 * 2);
}

TEST(LayerCapture, RefusesLayersThatAreNotThere) {
  Fixture fixture(small_config());
  ForwardContext context = fixture.context();
  const at::Tensor x = fixture.model.embed(fixture.batch, context);
  for (LayerCapture capture : {LayerCapture{{2}, {}, {}, {}}, LayerCapture{{}, {-1}, {}, {}}}) {
    context.capture = &capture;
    EXPECT_THROW(fixture.model.blocks(x, fixture.batch, context), base::ConfigError);
  }
}

TEST(Transformer, HeadWeightAndObserverAreThoseOfTheHead) {
  for (const bool tied : {false, true}) {
    TransformerConfig config = small_config();
    config.tie_embeddings = tied;
    Fixture fixture(config);
    const auto parameter = fixture.parameters.find(tied ? "embedding.weight" : "head.weight");
    const nn::Weight weight = fixture.model.head_weight();
    EXPECT_TRUE(weight.tensor.is_same(parameter->value));
    EXPECT_EQ(weight.sink, &parameter->grad);
    EXPECT_EQ(fixture.model.head_first_id(), 0);

    const ForwardContext context = fixture.context();
    const auto h =
        fixture.model.blocks(fixture.model.embed(fixture.batch, context), fixture.batch, context).h_BsD;
    std::vector<at::Tensor> chunks;
    nn::CrossEntropyOptions options;
    options.chunk_tokens = 10;
    options.observe_logits = [&](at::Tensor& logits, std::int64_t) { chunks.push_back(logits.clone()); };
    const nn::CrossEntropy watched = fixture.model.head_loss(h, fixture.batch, options);
    EXPECT_EQ(chunks.size(), 3U);
    tests::expect_close(at::cat(chunks), at::matmul(h, weight.tensor.t()).view({27, 37}), 1e-13, "logits");
    options.observe_logits = nullptr;
    EXPECT_TRUE(at::equal(watched.per_token, fixture.model.head_loss(h, fixture.batch, options).per_token));
    tests::expect_close(fixture.model.head_loss(h, fixture.batch).sum, watched.sum, 1e-13, "chunks of 512");
  }
}

/// Bytes that ATen allocates on this thread while it is installed.
struct MemoryWatch : c10::MemoryReportingInfoBase {
  std::unordered_map<void*, std::int64_t> live;
  std::int64_t live_bytes = 0;
  std::int64_t largest = 0;

  void reportMemoryUsage(void* pointer, std::int64_t size, std::size_t, std::size_t, c10::Device) override {
    if (size > 0) {
      live[pointer] = size;
      live_bytes += size;
      largest = std::max(largest, size);
    } else if (const auto block = live.find(pointer); block != live.end()) {
      live_bytes -= block->second;
      live.erase(block);
    }
  }
  bool memoryProfilingEnabled() const override { return true; }
};

struct FrozenPass {
  std::int64_t largest = 0;
  std::int64_t kept = 0;  ///< bytes alive after it, beyond those of its results
  bool attached = false;  ///< whether an accumulator or a .grad came to be
  at::Tensor per_token_N{};
};

/// Forward of an f64 model without accumulators, whose head's [2000, 16] is larger than any activation.
FrozenPass forward_of_teacher(bool no_grad) {
  TransformerConfig config = small_config();
  config.vocab_size = 2000;
  config.recompute = true;  // must not apply
  const parallel::ProcessGrid grid;
  parallel::ParameterMap parameters({3, at::kDouble, true});
  const Transformer model(config, parameters, grid);
  const nn::TokenBatch batch = small_batch();
  const auto watch = std::make_shared<MemoryWatch>();
  FrozenPass result;
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, watch);
  const at::AutoGradMode mode(!no_grad);
  ForwardContext context;
  context.training = false;
  nn::CrossEntropyOptions options;
  options.chunk_tokens = 4;
  const Transformer::Hidden hidden = model.blocks(model.embed(batch, context), batch, context);
  const nn::CrossEntropy loss = model.head_loss(hidden.h_BsD, batch, options);
  EXPECT_EQ(loss.sum.requires_grad(), !no_grad);
  const std::int64_t results =
      static_cast<std::int64_t>(hidden.h_BsD.nbytes() + loss.sum.nbytes() + loss.per_token.nbytes());
  result.largest = watch->largest;
  result.kept = watch->live_bytes - results;
  for (const auto& parameter : parameters.all()) {
    result.attached |= parameter->grad.is_attached() || parameter->value.grad().defined();
  }
  result.per_token_N = loss.per_token;
  return result;
}

TEST(Transformer, AFrozenPassAllocatesNoGradientsAndKeepsNothing) {
  const std::int64_t head_gradient = 2000 * 16 * 8;
  const FrozenPass frozen = forward_of_teacher(true), trained = forward_of_teacher(false);
  EXPECT_LT(frozen.largest, head_gradient);
  EXPECT_EQ(frozen.kept, 0);
  EXPECT_FALSE(frozen.attached);
  EXPECT_GE(trained.largest, head_gradient);  // the check can fail
  EXPECT_GT(trained.kept, head_gradient);
  EXPECT_TRUE(at::equal(frozen.per_token_N, trained.per_token_N));
}

}  // namespace
}  // namespace athanor::model
