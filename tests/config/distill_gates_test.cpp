// What moves a distillation while it runs: stages' learning rates, weights, gates, early stopping, the gap.
#include "config/distill_plan.hpp"

#include "config/estimate.hpp"
#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

RunConfig pair(const std::vector<std::string>& more) {
  std::vector<std::string> words = {
      "distill",         "--data.train=corpus/a", "--model.vocab_size=512", "--batch.global=8",
      "--batch.seq=100", "--teacher.ranks=2",     "--student.moe.experts=0"};
  words.insert(words.end(), more.begin(), more.end());
  return parse(words).config;
}

void refused(const std::vector<std::string>& more, const std::vector<std::string>& parts) {
  expect_error([&] { validate(pair(more), 4); }, base::ExitCode::usage, parts);
}

void accepted(const std::vector<std::string>& more) {
  EXPECT_NO_THROW(validate(pair(more), 4));
}

TEST(DistillStages, HaveLearningRateFactors) {
  const auto phases = make_phases(pair({"--distill.phases=soft_label:0.25:0.5,joint:0.75"}));
  ASSERT_EQ(phases.size(), 2u);
  EXPECT_EQ(phases[0].fraction, 0.25);
  EXPECT_EQ(phases[0].learning_rate_factor, 0.5);
  EXPECT_EQ(phases[1].learning_rate_factor, 1.0);
  refused({"--distill.phases=joint:1:0"}, {"learning-rate factor of 0", "above 0"});
  refused({"--distill.phases=joint:1:x"}, {"joint:1:x", "kind:fraction[:learning-rate factor]"});
  refused({"--distill.phases=joint:1:1:1"}, {"joint:1:1:1"});
}

TEST(DistillStages, WeightsWarmUpAndDecay) {
  const auto phases = make_phases(
      pair({"--distill.phases=joint", "--distill.hidden_warmup_steps=10", "--distill.hidden_decay=0.5",
            "--distill.decay_period=20", "--distill.attention_layers=1", "--distill.attention_decay=0.9"}));
  EXPECT_DOUBLE_EQ(phases[0].hidden.at(0), 0.08);
  EXPECT_DOUBLE_EQ(phases[0].hidden.at(10), 0.8);
  EXPECT_DOUBLE_EQ(phases[0].hidden.at(50), 0.2);
  EXPECT_DOUBLE_EQ(phases[0].attention.at(0), 0.2);
  EXPECT_DOUBLE_EQ(phases[0].attention.at(20), 0.18);
  EXPECT_DOUBLE_EQ(phases[0].ce.at(50), 1.0);
  refused({"--distill.hidden_decay=1.5"}, {"distill.hidden_decay=1.5"});
  refused({"--distill.attention_warmup_steps=-1"}, {"distill.attention_warmup_steps=-1"});
  refused({"--distill.decay_period=0"}, {"distill.decay_period=0"});
}

TEST(DistillGates, RefuseWhatCannotBe) {
  accepted({"--distill.difficulty_gate=true", "--distill.difficulty_full_until=1"});
  refused({"--distill.difficulty_full_until=4"},
          {"distill.difficulty_full_until=4", "difficulty_zero_from=4"});
  refused({"--distill.balance_losses=true", "--distill.hidden_layers=0", "--distill.phases=joint"},
          {"distill.balance_losses=true", "hidden_layers=0"});
  refused({"--distill.on_teacher_loss=labels", "--distill.students=a,b", "--student.a.ranks=1",
           "--student.b.ranks=1"},
          {"distill.on_teacher_loss=labels", "2 students", "stop"});
  refused({"--distill.attention_layers=1", "--teacher.model.heads=3", "--teacher.model.kv_heads=3",
           "--teacher.model.head_dim=8", "--student.parallel.tp=2"},
          {"distill.attention_layers=1", "student.parallel.tp=2", "whole heads"});
}

TEST(DistillGates, EarlyStoppingNeedsSomethingToWatch) {
  accepted({"--distill.patience=3", "--distill.held_out=0.05", "--train.eval_every=10"});
  refused({"--distill.patience=3", "--train.eval_every=10", "--data.valid=corpus/v"},
          {"distill.patience=3", "distill.held_out=0"});
  refused({"--distill.patience=3", "--distill.held_out=0.05"}, {"distill.patience=3", "train.eval_every=0"});
  refused({"--distill.patience=3", "--distill.held_out=0.05", "--train.eval_every=10",
           "--distill.phases=feature_alignment:1"},
          {"distill.patience=3", "feature_alignment"});
  refused({"--distill.held_out=1"}, {"distill.held_out=1"});
  refused({"--distill.min_improvement=-1"}, {"distill.min_improvement=-1"});
  refused({"--train.eval_every=10"}, {"data.valid"});  // held-out samples do not replace it otherwise
}

TEST(DistillGap, CountsAndLimitsItsLogits) {
  // 4 samples of a rank, 1 position each, in one of the 3 steps of the window.
  accepted({"--distill.gap_every=50"});
  accepted({"--distill.gap_every=50", "--distill.gap_fraction=1"});
  refused({"--distill.gap_every=1", "--distill.gap_fraction=1"},
          {"distill.gap_fraction=1", "3 of the steps", "1200 rows", "512"});
  refused({"--distill.gap_every=5", "--distill.phases=feature_alignment:1"}, {"distill.gap_every=5"});
  const RunConfig none = pair({}), some = pair({"--distill.gap_every=50", "--distill.gap_fraction=0.015"});
  EXPECT_EQ(signal_bytes(none, none.roles[1]).gap, 0);
  EXPECT_EQ(signal_bytes(some, some.roles[1]).gap, 8 * 2 * 512 * 4);
  const parallel::ParallelDims dims{.dp = 2};
  EXPECT_EQ(link_memory(some, some.roles[0], dims) - link_memory(none, none.roles[0], dims),
            2 * 8 * 2 * 512 * 4 / 2);
  EXPECT_EQ(link_memory(some, some.roles[1], dims) - link_memory(none, none.roles[1], dims),
            3 * 8 * 2 * 512 * 4 / 2);
}

}  // namespace
}  // namespace athanor::config
