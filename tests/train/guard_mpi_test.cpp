// The guard around the steps of a trainer; damage is done by fault points.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"
#include "support/synthetic_batches.hpp"
#include "train/step_guard.hpp"
#include "train/trainer.hpp"

namespace athanor::train {
namespace {

using tests::world;

constexpr std::int64_t num_steps = 14;
constexpr std::int64_t bad_step = 11;

tests::SyntheticData data() {
  return {53, 10, 8, 9, false};
}

TrainerOptions options(GuardAction action) {
  TrainerOptions options;
  model::TransformerConfig& model = options.role.model;
  model.vocab_size = 53;
  model.layers = 2;
  model.hidden = 16;
  model.heads = 4;
  model.kv_heads = 2;
  model.max_seq = 16;
  model.init_std = 0.1;
  model.moe.num_experts = 8;
  model.moe.top_k = 2;
  model.moe.ffn = 8;
  model.moe.balance = {moe::BalanceKind::squared, moe::BalanceKind::bias};
  options.role.optim.lr = 5e-3;
  options.role.optim.schedule = optim::ScheduleKind::constant;
  options.role.ep = world().size();
  options.role.micro_batch = data().global_batch / world().size();
  options.global_batch = data().global_batch;
  options.seq = data().seq;
  options.total_steps = 100;
  options.seed = 5;
  options.guard.action = action;
  options.guard.window = 16;
  options.guard.min_steps = 8;
  options.guard.replica_every = 0;
  return options;
}

struct Record {
  std::vector<StepMetrics> steps;
  std::vector<at::Tensor> parameters;
  GuardState guard;
};

// The first passing of a fault point is that of step 1; a step that is run again passes it twice.
Record run(const TrainerOptions& options, const std::string& faults) {
  base::set_faults(faults);
  Trainer trainer(options, world());
  Record result;
  for (std::int64_t step = 0; step < num_steps; ++step) {
    result.steps.push_back(
        trainer.step(tests::synthetic_step(data(), trainer.replica(), options.role.micro_batch, step)));
  }
  base::set_faults("");
  for (const auto& parameter : trainer.parameters().all()) {
    result.parameters.push_back(parameter->value.detach().clone());
  }
  result.guard = trainer.state().guard;
  return result;
}

void expect_equal(const Record& a, const Record& b) {
  for (std::size_t i = 0; i < a.steps.size(); ++i) {
    EXPECT_EQ(a.steps[i].loss, b.steps[i].loss) << "step " << i + 1;
    EXPECT_EQ(a.steps[i].grad_norm, b.steps[i].grad_norm) << "step " << i + 1;
  }
  for (std::size_t i = 0; i < a.parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(a.parameters[i], b.parameters[i])) << i;
  }
}

const StepMetrics& bad_metrics(const Record& run) {
  return run.steps[bad_step - 1];
}

std::string last_rank() {
  return std::to_string(world().size() - 1);
}

class PassingFault : public testing::TestWithParam<const char*> {};

TEST_P(PassingFault, IsRunAgainAndLeavesNoTrace) {
  const Record reference = run(options(GuardAction::off), "");
  const Record repeated =
      run(options(GuardAction::skip), std::string(GetParam()) + ":" + last_rank() + ":11:value=1e4");
  expect_equal(reference, repeated);
  EXPECT_EQ(repeated.guard.transients, 1);
  EXPECT_EQ(repeated.guard.trips, 0);
  EXPECT_FALSE(bad_metrics(repeated).skipped);
  EXPECT_NE(bad_metrics(repeated).guard.find("rank " + last_rank()), std::string::npos)
      << bad_metrics(repeated).guard;
}

INSTANTIATE_TEST_SUITE_P(All, PassingFault, testing::Values("train.loss", "train.gradient"));

TEST(StepGuard, APassingNanIsRunAgainToo) {
  const Record reference = run(options(GuardAction::off), "");
  const Record repeated = run(options(GuardAction::skip), "train.gradient:" + last_rank() + ":11:value=nan");
  expect_equal(reference, repeated);
  EXPECT_EQ(repeated.guard.transients, 1);
  EXPECT_EQ(repeated.steps.back().total_skips, 0);
}

TEST(StepGuard, AStepWhoseSumsWereUnderWayIsRunAgainToo) {
  TrainerOptions overlapped = options(GuardAction::skip);
  overlapped.role.optim.overlap_reduce = true;
  overlapped.role.optim.overlap_gather = true;
  overlapped.guard.replica_every = 3;
  const Record reference = run(options(GuardAction::off), "");
  const Record repeated = run(overlapped, "train.gradient:" + last_rank() + ":11:value=1e4");
  expect_equal(reference, repeated);
  EXPECT_EQ(repeated.guard.transients, 1);
  EXPECT_EQ(repeated.guard.repairs, 0);
}

// Bad in the first run and in the second one.
std::string lasting(const std::string& point, const std::string& value) {
  return point + ":*:11:value=" + value + "," + point + ":*:12:value=" + value;
}

TEST(StepGuard, ASpikeOfTheDataIsLeftOutEverywhere) {
  base::set_faults(lasting("train.gradient", "1000"));
  Trainer trainer(options(GuardAction::skip), world());
  const auto step = [&](std::int64_t number) {
    return trainer.step(
        tests::synthetic_step(data(), trainer.replica(), trainer.options().role.micro_batch, number - 1));
  };
  for (std::int64_t number = 1; number < bad_step; ++number) {
    step(number);
  }
  std::vector<at::Tensor> before;
  for (const auto& parameter : trainer.parameters().all()) {
    before.push_back(parameter->value.detach().clone());
  }
  const TrainState state = trainer.state();
  const at::Tensor counts = state.balance.previous_counts_LE.clone();
  const StepMetrics metrics = step(bad_step);
  EXPECT_TRUE(metrics.skipped);
  EXPECT_TRUE(std::isfinite(metrics.grad_norm));
  EXPECT_EQ(metrics.total_skips, 0) << "the loss scale has nothing to do with it";
  EXPECT_NE(metrics.guard.find("gradient norm"), std::string::npos) << metrics.guard;
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(at::equal(before[i], trainer.parameters().all()[i]->value));
  }
  EXPECT_TRUE(at::equal(counts, trainer.state().balance.previous_counts_LE));
  EXPECT_EQ(trainer.state().updates, state.updates);
  EXPECT_EQ(trainer.state().guard.losses, state.guard.losses);
  EXPECT_EQ(trainer.state().guard.trips, 1);
  EXPECT_EQ(trainer.state().guard.transients, 0);
  EXPECT_EQ(trainer.state().guard.last_trip, bad_step);
  EXPECT_FALSE(step(bad_step + 1).skipped);
  EXPECT_EQ(trainer.state().guard.bad_steps, 0);
  base::set_faults("");
}

TEST(StepGuard, ALastingNanIsLeftOutAndCounted) {
  const Record skipped = run(options(GuardAction::skip), lasting("train.gradient", "nan"));
  EXPECT_TRUE(bad_metrics(skipped).skipped);
  EXPECT_EQ(skipped.guard.trips, 1);
  EXPECT_EQ(skipped.guard.transients, 0);
  EXPECT_EQ(skipped.steps.back().total_skips, 1);
  EXPECT_FALSE(skipped.steps.back().skipped);
}

TEST(StepGuard, AWarningChangesNoBit) {
  const std::string fault = "train.loss:*:11:value=100";
  const Record silent = run(options(GuardAction::off), fault);
  const Record warned = run(options(GuardAction::warn), fault);
  expect_equal(silent, warned);
  EXPECT_EQ(silent.guard.trips, 0);
  EXPECT_EQ(warned.guard.trips, 1);
  EXPECT_NE(bad_metrics(warned).guard.find("warned: loss"), std::string::npos) << bad_metrics(warned).guard;
}

TEST(StepGuard, TooManyInARowStopTheRunWithABundle) {
  TrainerOptions two = options(GuardAction::skip);
  two.guard.max_trips = 2;
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "athanor_guard_bundle";
  std::filesystem::create_directories(folder);
  two.guard.bundle_dir = folder;
  std::string faults;
  for (int passing = 11; passing < 15; ++passing) {
    faults += (faults.empty() ? "" : ",") + ("train.loss:*:" + std::to_string(passing)) + ":value=100";
  }
  EXPECT_THROW(run(two, faults), base::NumericError);
  base::set_faults("");
  world().barrier();
  const std::filesystem::path file = folder / "guard-teacher-step-00000012.json";
  std::ifstream stream(file);
  const nlohmann::json bundle = nlohmann::json::parse(stream);
  EXPECT_EQ(bundle["first_bad_step"], 11);
  EXPECT_EQ(bundle["losses"].size(), 10u);
  ASSERT_EQ(bundle["ranks"].size(), static_cast<std::size_t>(world().size()));
  std::vector<std::int64_t> samples;
  for (const nlohmann::json& rank : bundle["ranks"]) {
    for (const nlohmann::json& sample : rank["samples"]) {
      samples.push_back(sample.get<std::int64_t>());
    }
    EXPECT_FALSE(rank["largest_gradient"]["parameter"].get<std::string>().empty());
  }
  ASSERT_EQ(samples.size(), 8u);
  EXPECT_EQ(samples.front(), 11 * 8);
  world().barrier();
  if (world().rank() == 0) {
    std::filesystem::remove_all(folder);
  }
}

TEST(ReplicaCheck, AFlippedWeightIsRestoredAndItsRankNamed) {
  TrainerOptions checked = options(GuardAction::warn);
  checked.guard.replica_every = bad_step;
  const std::string fault = "train.weight:" + last_rank() + ":11:value=0.75";
  if (world().size() == 1) {
    EXPECT_THROW(run(checked, fault), base::NumericError) << "nobody else has it";
    base::set_faults("");
    return;
  }
  const Record reference = run(options(GuardAction::off), "");
  const Record repaired = run(checked, fault);
  expect_equal(reference, repaired);
  EXPECT_EQ(repaired.guard.repairs, 1);
  EXPECT_NE(bad_metrics(repaired).guard.find("of rank " + last_rank()), std::string::npos)
      << bad_metrics(repaired).guard;
}

TEST(ReplicaCheck, NothingIsFoundInARunWithoutFaults) {
  TrainerOptions checked = options(GuardAction::skip);
  checked.guard.replica_every = 1;
  const Record reference = run(options(GuardAction::off), "");
  const Record run_checked = run(checked, "");
  expect_equal(reference, run_checked);
  EXPECT_EQ(run_checked.guard.repairs, 0);
  EXPECT_EQ(run_checked.guard.trips, 0);
}

TEST(ReplicaCheck, WithoutShardedStateAReplicaThatDriftedIsFoundLater) {
  if (world().size() < 3) {
    GTEST_SKIP() << "a majority takes three";
  }
  TrainerOptions checked = options(GuardAction::warn);
  checked.role.optim.zero = 0;
  checked.guard.replica_every = 6;
  const Record repaired = run(checked, "train.weight:1:3:value=0.75");  // checked after step 5, in step 6
  EXPECT_EQ(repaired.guard.repairs > 0, true);
  EXPECT_NE(repaired.steps[5].guard.find("of rank 1"), std::string::npos) << repaired.steps[5].guard;
}

}  // namespace
}  // namespace athanor::train
