// Rounded wires in whole training runs: they repeat bit for bit, follow the full wire, and stop a step with a
// number that is not finite on all ranks.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "contracts/run_record.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

Case make_case(base::ComputeType compute) {
  Case test;
  test.name = "wires";
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
  test.role.optim.lr = 3e-3;
  test.role.optim.warmup_steps = 3;
  test.data.vocab = 61;
  test.data.seq = 16;
  test.data.global_batch = 16;
  return test;
}

void use_rounded_wires(Case& test, base::Fp8Format format, bool feedback) {
  test.role.grad_wire = {base::WireType::fp8, format, feedback};
  test.role.model.moe.wire = {base::WireType::fp8, base::WireType::bf16, format};
}

// Dense gradients over all ranks, those of the experts over two.
Layout half_experts() {
  return {world().size(), 1, world().size() / 2, 1, 1};
}

TEST(Determinism, RoundedWiresRepeatBitForBit) {
  for (const bool feedback : {false, true}) {
    Case test = make_case(base::ComputeType::bf16);
    test.steps = 6;
    use_rounded_wires(test, base::Fp8Format::e4m3, feedback);
    const RunRecord first = run_layout(test, half_experts(), world());
    const RunRecord second = run_layout(test, half_experts(), world());
    for (std::size_t i = 0; i < first.steps.size(); ++i) {
      EXPECT_EQ(first.steps[i].loss, second.steps[i].loss);
      EXPECT_EQ(first.steps[i].grad_norm, second.steps[i].grad_norm);
    }
    for (const auto& [name, value] : first.parameters) {
      EXPECT_TRUE(at::equal(value, second.parameters.at(name))) << name;
    }
  }
}

TEST(RoundedWires, FollowTheFullWireForAThirdOfTheBytes) {
  Case test = make_case(base::ComputeType::f32);
  test.steps = 30;
  const RunRecord full = run_layout(test, half_experts(), world());
  EXPECT_LT(full.steps.back().loss, 0.97 * full.steps.front().loss);  // it learns
  for (const base::Fp8Format format : {base::Fp8Format::e4m3, base::Fp8Format::e5m2}) {
    use_rounded_wires(test, format, false);
    const RunRecord rounded = run_layout(test, half_experts(), world());
    for (std::size_t i = 0; i < full.steps.size(); ++i) {
      EXPECT_NEAR(rounded.steps[i].loss, full.steps[i].loss, 5e-3 * full.steps[i].loss) << "step " << i + 1;
      EXPECT_EQ(rounded.steps[i].wire_losses.nonfinite, 0);
    }
    EXPECT_NE(rounded.steps.back().loss, full.steps.back().loss);
    for (const auto kind : {parallel::Traffic::grad_dense, parallel::Traffic::grad_expert}) {
      const auto index = static_cast<std::size_t>(kind);
      EXPECT_GT(full.steps[0].bytes_sent[index], 0);
      EXPECT_LE(static_cast<double>(rounded.steps[0].bytes_sent[index]),
                0.27 * static_cast<double>(full.steps[0].bytes_sent[index]));
    }
  }
}

TEST(RoundedWires, ANumberThatIsNotFiniteStopsTheStepOnAllRanks) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Case test = make_case(base::ComputeType::f32);
    use_rounded_wires(test, base::Fp8Format::e5m2, true);
    train::Trainer trainer(trainer_options(test, half_experts()), world());
    EXPECT_FALSE(train_step(test, trainer).skipped);
    const auto experts = trainer.parameters().find("layers.1.moe.experts.down");
    ASSERT_NE(experts, nullptr);
    const at::NoGradGuard no_grad;
    const at::Tensor kept = experts->value.detach().clone();
    if (world().rank() == world().size() - 1) {
      experts->value.view({-1})[0] = bad;
    }
    const train::StepMetrics metrics = train_step(test, trainer);
    EXPECT_TRUE(metrics.skipped);
    EXPECT_GT(metrics.wire_losses.nonfinite, 0);
    experts->value.copy_(kept);
    EXPECT_FALSE(train_step(test, trainer).skipped);
    EXPECT_EQ(trainer.optimizer().updates(), 2);
  }
}

}  // namespace
}  // namespace athanor::tests
