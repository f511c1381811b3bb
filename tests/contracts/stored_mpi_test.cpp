// Activations and gradients that wait in FP8, in whole training runs.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "base/error.hpp"
#include "contracts/restart_case.hpp"
#include "contracts/run_record.hpp"
#include "support/mpi_test.hpp"
#include "train/state_dict.hpp"

namespace athanor::tests {
namespace {

using nn::ActivationClass;
const std::vector<ActivationClass> all_classes = {ActivationClass::attention, ActivationClass::ffn,
                                                  ActivationClass::experts, ActivationClass::norm};

Case make_case(base::ComputeType compute) {
  Case test;
  test.name = "stored";
  test.role.compute = compute;
  test.role.model.vocab_size = 61;
  test.role.model.layers = 2;
  test.role.model.hidden = 32;
  test.role.model.heads = 4;
  test.role.model.kv_heads = 2;
  test.role.model.max_seq = 32;
  test.role.model.init_std = 0.1;
  test.role.model.moe.num_experts = 16;
  test.role.model.moe.top_k = 2;
  test.role.model.moe.ffn = 8;
  test.role.model.moe.shared_experts = 1;
  test.role.optim.lr = 3e-3;
  test.role.optim.warmup_steps = 3;
  test.data.vocab = 61;
  test.data.seq = 15;  // odd: padded with tp
  test.data.global_batch = 16;
  return test;
}

// Dense gradients over all ranks, those of the experts over two.
Layout half_experts(int tp = 1) {
  return {world().size(), tp, std::max(world().size() / 2, 1), 1, 1};
}

void expect_same_run(const RunRecord& actual, const RunRecord& expected) {
  ASSERT_EQ(actual.steps.size(), expected.steps.size());
  for (std::size_t i = 0; i < actual.steps.size(); ++i) {
    EXPECT_EQ(actual.steps[i].loss, expected.steps[i].loss) << "step " << i + 1;
    EXPECT_EQ(actual.steps[i].grad_norm, expected.steps[i].grad_norm) << "step " << i + 1;
  }
  for (const auto& [name, value] : expected.parameters) {
    EXPECT_TRUE(at::equal(value, actual.parameters.at(name))) << name;
  }
}

// Forward is not rounded, so the first loss is the full one.
void expect_follows(const RunRecord& stored, const RunRecord& full) {
  EXPECT_EQ(stored.steps.front().loss, full.steps.front().loss);
  EXPECT_NE(stored.steps.front().grad_norm, full.steps.front().grad_norm);
  EXPECT_NEAR(stored.steps.front().grad_norm, full.steps.front().grad_norm,
              0.02 * full.steps.front().grad_norm);
  for (std::size_t i = 0; i < full.steps.size(); ++i) {
    EXPECT_NEAR(stored.steps[i].loss, full.steps[i].loss, 5e-3 * full.steps[i].loss) << "step " << i + 1;
    EXPECT_EQ(stored.steps[i].skipped, full.steps[i].skipped);
  }
}

TEST(StoredActivations, FollowTheFullRunOnEveryLayoutAndFormat) {
  struct Run {
    base::ComputeType compute;
    int tp;
    int steps;
  };
  for (const Run& run : {Run{base::ComputeType::f32, 1, 40}, Run{base::ComputeType::f32, 2, 6},
                         Run{base::ComputeType::fp16, 1, 6}}) {
    if (world().size() % run.tp != 0) {
      continue;
    }
    Case test = make_case(run.compute);
    test.steps = run.steps;
    const RunRecord full = run_layout(test, half_experts(run.tp), world());
    if (run.steps == 40) {
      EXPECT_LT(full.steps.back().loss, 0.97 * full.steps.front().loss);  // it learns
    }
    test.role.model.storage = {all_classes, base::Fp8Format::e4m3};
    expect_follows(run_layout(test, half_experts(run.tp), world()), full);
  }
}

TEST(StoredActivations, RecomputedLayersGiveTheSameBits) {
  Case test = make_case(base::ComputeType::f32);
  test.steps = 4;
  test.role.model.storage = {all_classes, base::Fp8Format::e5m2};
  const RunRecord kept = run_layout(test, half_experts(), world());
  test.role.model.recompute = true;
  expect_same_run(run_layout(test, half_experts(), world()), kept);
}

// A gradient is rounded to what the wire carries, where it is made or on its way: the same run.
TEST(StoredGradients, AreTheBitsOfTheFp8Wire) {
  for (const auto stored : {optim::StoredGradients::experts, optim::StoredGradients::all}) {
    for (const bool overlap : {false, true}) {
      if (world().size() < 2) {
        continue;  // nothing travels: see OfOneRankAreRoundedOnce
      }
      Case test = make_case(base::ComputeType::bf16);
      test.steps = 5;
      test.role.grad_wire = {base::WireType::fp8};
      const RunRecord wire = run_layout(test, half_experts(), world());
      test.role.grad_wire.stored = stored;
      test.role.optim.overlap_reduce = overlap;
      const RunRecord waiting = run_layout(test, half_experts(), world());
      expect_same_run(waiting, wire);
      for (std::size_t i = 0; i < wire.steps.size(); ++i) {
        EXPECT_EQ(waiting.steps[i].wire_losses.underflow, wire.steps[i].wire_losses.underflow);
        EXPECT_EQ(waiting.steps[i].bytes_sent, wire.steps[i].bytes_sent);
      }
    }
  }
}

// Experts with a holder each: their gradients go nowhere, and are rounded all the same.
TEST(StoredGradients, OfOneRankAreRoundedOnce) {
  Case test = make_case(base::ComputeType::f32);
  test.steps = 20;
  const Layout alone{world().size(), 1, world().size(), 1, 1};
  test.role.grad_wire = {base::WireType::fp8};
  const RunRecord wire = run_layout(test, alone, world());
  test.role.grad_wire.stored = optim::StoredGradients::all;
  const RunRecord waiting = run_layout(test, alone, world());
  EXPECT_NE(waiting.steps.back().loss, wire.steps.back().loss);
  for (std::size_t i = 0; i < wire.steps.size(); ++i) {
    EXPECT_NEAR(waiting.steps[i].loss, wire.steps[i].loss, 5e-3 * wire.steps[i].loss) << "step " << i + 1;
  }
}

TEST(StoredGradients, ASecondGradientOfAStepIsRefused) {
  Case test = make_case(base::ComputeType::f32);
  test.role.grad_wire = {base::WireType::fp8};
  test.role.grad_wire.stored = optim::StoredGradients::all;
  Layout layout = half_experts();
  layout.accumulation = 2;
  train::Trainer trainer(trainer_options(test, layout), world());
  EXPECT_THROW(train_step(test, trainer), base::InternalError);
}

void store_all(Case& test) {
  test.role.model.storage = {all_classes, base::Fp8Format::e4m3};
  test.role.grad_wire = {base::WireType::fp8};
  test.role.grad_wire.stored = optim::StoredGradients::all;
}

TEST(StoredInFp8, ANumberThatIsNotFiniteStopsTheStepOnAllRanks) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Case test = make_case(base::ComputeType::f32);
    store_all(test);
    train::Trainer trainer(trainer_options(test, half_experts()), world());
    EXPECT_FALSE(train_step(test, trainer).skipped);
    const auto experts = trainer.parameters().find("layers.1.moe.experts.down");
    ASSERT_NE(experts, nullptr);
    const at::NoGradGuard no_grad;
    const at::Tensor kept = experts->value.detach().clone();
    if (world().rank() == world().size() - 1) {
      experts->value.view({-1})[0] = bad;
    }
    EXPECT_TRUE(train_step(test, trainer).skipped);
    experts->value.copy_(kept);
    EXPECT_FALSE(train_step(test, trainer).skipped);
    EXPECT_EQ(trainer.optimizer().updates(), 2);
  }
}

TEST(StoredInFp8, TheLossScaleFindsItsPlace) {
  Case test = make_case(base::ComputeType::fp16);
  store_all(test);
  train::Trainer trainer(trainer_options(test, half_experts()), world());
  train::TrainState state = trainer.state();
  state.loss_scale.scale = 0x1p40;  // gradients overflow fp16 until it is halved often enough
  trainer.restore(state);
  std::int64_t skipped = 0;
  double scale = 0x1p40;
  for (int i = 0; i < 40; ++i) {
    const train::StepMetrics metrics = train_step(test, trainer);
    EXPECT_EQ(metrics.loss_scale, metrics.skipped ? scale / 2 : scale);
    scale = metrics.loss_scale;
    skipped += metrics.skipped ? 1 : 0;
  }
  EXPECT_GT(skipped, 5);
  EXPECT_LT(skipped, 39);
  EXPECT_EQ(trainer.optimizer().updates(), 40 - skipped);
}

TEST(ExactRestart, WithAllStoredInFp8) {
  Case test = make_case(base::ComputeType::bf16);
  store_all(test);
  test.steps = 6;
  const RunRecord whole = run_layout(test, half_experts(), world());
  const RunFolder folder("stored", world());
  {
    train::Trainer trainer(trainer_options(test, half_experts()), world());
    train::JobCheckpoints checkpoints(make_job(folder.path(), false, 3, 3), trainer, world());
    for (int i = 0; i < 3; ++i) {
      train_step(test, trainer);
    }
    checkpoints.save();
    checkpoints.finish();
  }
  train::Trainer trainer(trainer_options(test, half_experts()), world());
  ASSERT_TRUE(train::resume({}, folder.path(), {}, trainer, world()));
  for (std::size_t i = 3; i < 6; ++i) {
    EXPECT_EQ(train_step(test, trainer).loss, whole.steps[i].loss) << "step " << i + 1;
  }
  const RunRecord rest = collect_record(trainer, world());
  for (const auto& [name, value] : whole.parameters) {
    EXPECT_TRUE(at::equal(value, rest.parameters.at(name))) << name;
  }
}

}  // namespace
}  // namespace athanor::tests
