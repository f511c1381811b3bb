#include "train/trainer.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"
#include "support/synthetic_batches.hpp"
#include "train/job_checkpoints.hpp"
#include "train/state_dict.hpp"

namespace athanor::train {
namespace {

using tests::world;

tests::SyntheticData data() {
  return {53, 10, 8, 9, false};
}

TrainerOptions small_options(base::ComputeType compute) {
  TrainerOptions options;
  options.role.model.vocab_size = 53;
  options.role.model.layers = 2;
  options.role.model.hidden = 16;
  options.role.model.heads = 4;
  options.role.model.kv_heads = 2;
  options.role.model.max_seq = 16;
  options.role.model.init_std = 0.1;
  options.role.model.moe.num_experts = 8;
  options.role.model.moe.top_k = 2;
  options.role.model.moe.ffn = 8;
  options.role.model.moe.balance = {moe::BalanceKind::squared, moe::BalanceKind::bias};
  options.role.compute = compute;
  options.role.optim.lr = 5e-3;
  options.role.optim.schedule = optim::ScheduleKind::constant;
  options.role.ep = world().size();
  options.role.micro_batch = data().global_batch / world().size();
  options.global_batch = data().global_batch;
  options.seq = data().seq;
  options.total_steps = 100;
  options.seed = 5;
  return options;
}

StepMetrics train_step(Trainer& trainer, std::int64_t step) {
  return trainer.step(
      tests::synthetic_step(data(), trainer.replica(), trainer.options().role.micro_batch, step));
}

class ComputeTypes : public testing::TestWithParam<base::ComputeType> {};

TEST_P(ComputeTypes, TheLossFalls) {
  Trainer trainer(small_options(GetParam()), world());
  const double first = train_step(trainer, 0).loss;
  StepMetrics last;
  for (std::int64_t step = 1; step < 25; ++step) {
    last = train_step(trainer, step % 2);
  }
  EXPECT_NEAR(first, std::log(53.0), 0.3);
  EXPECT_LT(last.loss, first - 0.5);
  EXPECT_EQ(last.step, 25);
  EXPECT_EQ(last.tokens, 25 * 80);
  EXPECT_EQ(last.expert_counts.size(), 2u);
  EXPECT_FALSE(last.skipped);
}

INSTANTIATE_TEST_SUITE_P(All, ComputeTypes,
                         testing::Values(base::ComputeType::f32, base::ComputeType::f64,
                                         base::ComputeType::bf16, base::ComputeType::fp16));

TEST(Trainer, ANonFiniteGradientOnOneRankSkipsTheStepEverywhere) {
  Trainer trainer(small_options(base::ComputeType::f32), world());
  train_step(trainer, 0);
  const moe::BalanceState before = {trainer.state().balance.previous_counts_LE.clone(),
                                    trainer.state().balance.previous_tokens,
                                    trainer.state().balance.bias_PE.clone()};
  std::vector<at::Tensor> values;
  for (const auto& parameter : trainer.parameters().all()) {
    values.push_back(parameter->value.detach().clone());
  }
  // Only the last rank's experts produce NaN.
  const bool poisoned_rank = world().rank() == world().size() - 1;
  const auto poisoned = trainer.parameters().find("layers.1.moe.experts.down");
  at::Tensor kept;
  if (poisoned_rank) {
    at::NoGradGuard no_grad;
    kept = poisoned->value.detach().clone();
    poisoned->value.fill_(std::numeric_limits<float>::quiet_NaN());
  }
  const StepMetrics metrics = train_step(trainer, 1);
  if (poisoned_rank) {
    at::NoGradGuard no_grad;
    poisoned->value.copy_(kept);
  }
  EXPECT_TRUE(metrics.skipped);
  EXPECT_EQ(metrics.total_skips, 1);
  EXPECT_FALSE(std::isfinite(metrics.grad_norm));
  EXPECT_TRUE(at::equal(before.previous_counts_LE, trainer.state().balance.previous_counts_LE));
  EXPECT_TRUE(at::equal(before.bias_PE, trainer.state().balance.bias_PE));
  EXPECT_EQ(trainer.optimizer().updates(), 1);
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_TRUE(at::equal(values[i], trainer.parameters().all()[i]->value))
        << trainer.parameters().all()[i]->name;
  }
  EXPECT_FALSE(train_step(trainer, 2).skipped);
}

TEST(Trainer, ARunOfSkipsStopsTheRun) {
  TrainerOptions options = small_options(base::ComputeType::f32);
  options.role.optim.max_skips = 3;
  Trainer trainer(options, world());
  {
    at::NoGradGuard no_grad;
    trainer.parameters().find("final_norm.weight")->value.fill_(std::numeric_limits<float>::infinity());
  }
  train_step(trainer, 0);
  train_step(trainer, 1);
  EXPECT_THROW(train_step(trainer, 2), base::NumericError);
}

// A folder under the system's temporary one, made by rank 0 and removed at the end.
class SharedFolder {
 public:
  explicit SharedFolder(const std::string& name)
      : path_((std::filesystem::temp_directory_path() / (name + "_np" + std::to_string(world().size())))
                  .string()) {
    if (world().rank() == 0) {
      std::filesystem::remove_all(path_);
      std::filesystem::create_directories(path_);
    }
    world().barrier();
  }
  ~SharedFolder() {
    if (world().rank() == 0) {
      std::filesystem::remove_all(path_);
    }
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string save_once(Trainer& trainer, const std::string& folder) {
  JobCheckpoints::Job job;
  job.options.dir = folder;
  job.options.on_error = OnSaveError::stop;
  job.head.run_id = "0123456789abcdef";
  JobCheckpoints checkpoints(std::move(job), trainer, world());
  checkpoints.save();
  checkpoints.finish();
  return checkpoints.last_path();
}

TEST(StateDict, WeightsReadBackAtAnotherLayout) {
  const SharedFolder folder("athanor_weights");
  Trainer trainer(small_options(base::ComputeType::f32), world());
  train_step(trainer, 0);
  const std::string path = save_once(trainer, folder.path());

  TrainerOptions other = small_options(base::ComputeType::f32);
  other.seed = 6;
  other.role.ep = 1;
  other.role.tp = world().size() <= 4 ? world().size() : 1;
  other.role.micro_batch = data().global_batch / (world().size() / other.role.tp);
  Trainer loaded(other, world());
  const checkpoint::CheckpointReader reader(path);
  load_weights(reader, "teacher", loaded.parameters(), loaded.state().balance);
  loaded.state().balance.previous_counts_LE.copy_(trainer.state().balance.previous_counts_LE);
  loaded.state().balance.previous_tokens = trainer.state().balance.previous_tokens;
  EXPECT_TRUE(at::equal(loaded.state().balance.bias_PE, trainer.state().balance.bias_PE));
  const double a = train_step(trainer, 1).loss;
  const double b = train_step(loaded, 1).loss;
  EXPECT_NEAR(a, b, 1e-5 * a);

  other.role.model.moe.ffn = 16;
  Trainer foreign(other, world());
  EXPECT_THROW(load_weights(reader, "teacher", foreign.parameters(), foreign.state().balance),
               base::CheckpointError);
  EXPECT_THROW(load_weights(reader, "student", foreign.parameters(), foreign.state().balance),
               base::CheckpointError);
}

TEST(StateDict, ScalarsSurviveAndNoneIsForgotten) {
  TrainState state;
  state.step = 1;
  state.tokens = (std::int64_t{1} << 60) + 3;
  state.updates = 4;
  state.loss_scale = {0.1, 5, 6, 7, true};
  state.balance.previous_tokens = 8;
  state.cursor.next_position = 9;
  state.objective = "{\"gate\":0.1}";
  state.guard = {{0.1, 1.0 / 3.0}, {2e-300, 7.0}, 1, 2, 3, 4, 5, 6, 7, 8, "joint"};
  TrainState read;
  // Through text, as it is in the manifest.
  scalars_from_json(nlohmann::json::parse(scalars_to_json(state).dump()), read);
  EXPECT_EQ(read.step, state.step);
  EXPECT_EQ(read.tokens, state.tokens);
  EXPECT_EQ(read.updates, state.updates);
  EXPECT_EQ(read.loss_scale, state.loss_scale);
  EXPECT_EQ(read.balance.previous_tokens, state.balance.previous_tokens);
  EXPECT_EQ(read.cursor.next_position, state.cursor.next_position);
  EXPECT_EQ(read.objective, state.objective);
  EXPECT_EQ(read.guard, state.guard);
  nlohmann::json json = scalars_to_json(state);
  nlohmann::json older = json;
  older.erase("guard");  // checkpoints of before there was one
  scalars_from_json(older, read);
  EXPECT_EQ(read.guard, GuardState{});
  for (const auto& [name, value] : json["guard"].items()) {
    nlohmann::json without = json;
    without["guard"].erase(name);
    EXPECT_THROW(scalars_from_json(without, read), base::CheckpointError) << name;
  }
  for (const std::string name :
       {"step", "tokens", "updates", "loss_scale", "previous_tokens", "cursor", "objective"}) {
    nlohmann::json without = json;
    without.erase(name);
    EXPECT_THROW(scalars_from_json(without, read), base::CheckpointError) << name;
  }
}

}  // namespace
}  // namespace athanor::train
