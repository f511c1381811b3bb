// `athanor bench stream` as text: roles and keys of `distill`, one stage.
#include "config/compare.hpp"
#include "config/distill_plan.hpp"
#include "config/estimate.hpp"
#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

RunConfig preset(std::vector<std::string> more = {}) {
  more.insert(
      more.begin(),
      {"bench", "stream", "--config=" + (tests::source_folder() / "configs" / "bench-distill.ini").string()});
  return parse(more).config;
}

TEST(BenchStreamConfig, ThePresetIsTheBenchShapeWithADenseStudent) {
  const RunConfig config = preset();
  validate(config, 4);
  const RunConfig step =
      parse({"bench", "step", "--config=" + (tests::source_folder() / "configs" / "bench-s.ini").string()})
          .config;
  ASSERT_EQ(config.roles.size(), 2u);
  const model::TransformerConfig& teacher = config.roles[0].model;
  EXPECT_EQ(model::count_parameters(teacher).total, model::count_parameters(step.roles[0].model).total);
  EXPECT_EQ(teacher.vocab_size, step.roles[0].model.vocab_size);
  EXPECT_EQ(config.batch.global, step.batch.global);
  EXPECT_EQ(config.batch.seq, step.batch.seq);
  EXPECT_EQ(config.roles[0].parallel.ep, step.roles[0].parallel.ep);
  EXPECT_FALSE(config.roles[0].frozen);
  const model::TransformerConfig& student = config.roles[1].model;
  EXPECT_EQ(student.layers, 4);
  EXPECT_EQ(student.hidden, 128);
  EXPECT_EQ(student.moe.num_experts, 0);
  EXPECT_EQ(hidden_pairs(config, config.roles[1]).size(), 2u);
  ASSERT_EQ(make_phases(config).size(), 1u);
  const distill::Phase phase = make_phases(config).front();
  EXPECT_TRUE(phase.uses_kd());
  EXPECT_TRUE(phase.codec.kind == distill::PayloadKind::hidden ||
              phase.codec.kind == distill::PayloadKind::full)
      << "the full distribution, nothing lost";
  EXPECT_GT(phase.ce.base, 0.0);
}

TEST(BenchStreamConfig, ThePresetRunsOnOneRankEach) {
  validate(preset({"--teacher.ranks=1", "--student.ranks=1", "--teacher.parallel.ep=1"}), 2);
}

TEST(BenchStreamConfig, StepsOfSeveralKindsAreRefused) {
  expect_error([] { validate(preset({"--distill.phases=three_stage"}), 4); }, base::ExitCode::usage,
               {"distill.phases=three_stage", "3 stages", "use joint"});
  validate(preset({"--distill.phases=soft_label:1"}), 4);
}

TEST(BenchStreamConfig, ATeacherMayBeFrozenWithoutACheckpoint) {
  const RunConfig config = preset({"--teacher.frozen=true"});
  validate(config, 4);
  EXPECT_EQ(signal_bytes(config, config.roles[1]).head, 0) << "sent once, not in each step";
  EXPECT_GT(signal_bytes(preset(), preset().roles[1]).head, 0);
  expect_error([] { validate(preset({"--student.frozen=true"}), 4); }, base::ExitCode::usage,
               {"student.frozen=true"});
}

TEST(BenchStreamConfig, KeysOfARunAreNotItsOwn) {
  expect_error([] { preset({"--data.train=a"}); }, base::ExitCode::usage, {"data.train"});
  expect_error([] { preset({"--train.steps=3"}); }, base::ExitCode::usage, {"train.steps"});
  expect_error(
      [] {
        parse({"bench", "step", "--distill.window=3"});
      },
      base::ExitCode::usage, {"distill.window"});
}

TEST(BenchStreamConfig, LogitsOfAHalfPrecisionTeacherTravelInItsType) {
  const RunConfig config = preset({"--distill.codec=full", "--precision.compute=bf16"});
  EXPECT_EQ(signal_bytes(config, config.roles[1]).payload, 2 * 8192);
}

TEST(BenchStreamConfig, MemoryHasTheRecordedStep) {
  const RunConfig bench = preset();
  RunConfig run = bench;
  run.command = Command::distill;
  const parallel::ParallelDims dims = resolve_dims(bench.roles[1], 2);
  const std::int64_t window = bench.distill.window;
  EXPECT_EQ(link_memory(bench, bench.roles[1], dims) * (window + 1),
            link_memory(run, run.roles[1], dims) * (window + 2));
  const parallel::ParallelDims teacher = resolve_dims(bench.roles[0], 2);
  EXPECT_EQ(link_memory(bench, bench.roles[0], teacher), link_memory(run, run.roles[0], teacher));
}

}  // namespace
}  // namespace athanor::config
