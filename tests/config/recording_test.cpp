// distill.source, distill.record and distill.record_temperatures.
#include "config/recording_plan.hpp"

#include <gtest/gtest.h>

#include "config/distill_plan.hpp"
#include "config/estimate.hpp"
#include "config/parse.hpp"
#include "config/roles.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

RunConfig job(const std::vector<std::string>& more) {
  std::vector<std::string> words = {
      "distill",           "--data.train=corpus/a:1:prose", "--model.vocab_size=512",
      "--batch.global=24", "--student.moe.experts=0",       "--train.steps=100"};
  words.insert(words.end(), more.begin(), more.end());
  return parse(words).config;
}

void refused(const std::vector<std::string>& more, const std::vector<std::string>& parts) {
  expect_error([&] { validate(job(more), 2); }, base::ExitCode::usage, parts);
}

TEST(Replay, AllRanksAreTheStudents) {
  const RunConfig live = job({"--teacher.ranks=1"});
  EXPECT_FALSE(is_replay(live));
  EXPECT_EQ(resolve_ranks(live, 3), (std::vector<int>{1, 2}));
  const RunConfig replay = job({"--distill.source=signals"});
  EXPECT_TRUE(is_replay(replay));
  EXPECT_FALSE(runs(replay, replay.roles[0]));
  EXPECT_TRUE(runs(replay, replay.roles[1]));
  EXPECT_EQ(resolve_ranks(replay, 3), (std::vector<int>{0, 3}));
  EXPECT_NO_THROW(validate(replay, 3));
  const RunConfig two = job({"--distill.source=signals", "--distill.students=a,b", "--student.a.ranks=1"});
  EXPECT_EQ(resolve_ranks(two, 3), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(planned_ranks(job({"--distill.source=signals", "--student.ranks=4"}), 1), 4);
}

TEST(Replay, TakesNoWindow) {
  const RunConfig live = job({"--teacher.ranks=1"});
  const RunConfig replay = job({"--distill.source=signals"});
  const parallel::ParallelDims dims = resolve_dims(replay.roles[1], 2);
  EXPECT_EQ(link_memory(live, live.roles[1], dims), 3 * link_memory(replay, replay.roles[1], dims));
  EXPECT_NE(describe_plan(replay, replay.roles[1], dims).find("read from signals"), std::string::npos);
}

TEST(Replay, TheRecordedTeachersShapeBindsTheStudentsOnly) {
  // Layouts and optimizers of a teacher that does not run are not looked at; its vocabulary is.
  EXPECT_NO_THROW(validate(job({"--distill.source=signals", "--teacher.parallel.tp=7"}), 2));
  EXPECT_NO_THROW(validate(job({"--distill.source=signals", "--teacher.frozen=true"}), 2));
  EXPECT_NO_THROW(validate(
      job({"--distill.source=signals", "--distill.gap_every=4", "--distill.phases=joint", "--batch.seq=8"}),
      2));
  refused({"--distill.source=signals", "--teacher.model.vocab_size=500"}, {"vocab_size=512", "500"});
}

TEST(Replay, RefusesWhatNeedsATeacher) {
  refused({"--distill.source="}, {"distill.source is empty", "live"});
  refused({"--distill.source=signals", "--distill.record=more"}, {"distill.record=more", "signals"});
  refused({"--distill.source=signals", "--distill.on_teacher_loss=labels"},
          {"distill.on_teacher_loss=labels"});
  refused({"--distill.source=signals", "--distill.search=temperature", "--data.valid=corpus/b"},
          {"distill.search=temperature"});
}

TEST(Record, TemperaturesAreAListFromTheMinimumOn) {
  const RunConfig config = job({"--distill.record=signals", "--distill.record_temperatures=4, 1,2,4"});
  EXPECT_EQ(record_temperatures(config), (std::vector<double>{1.0, 2.0, 4.0}));
  EXPECT_TRUE(record_temperatures(job({})).empty());
  // Each adds its statistics to what travels: lse and tail of 4 bytes.
  const std::int64_t more = signal_bytes(config, config.roles[1]).payload;
  EXPECT_EQ(more, signal_bytes(job({}), config.roles[1]).payload + 3 * 8);
  for (const std::string bad : {"0.5", "a", "1,,x", "nan", "-2"}) {
    refused({"--teacher.ranks=1", "--distill.record=signals", "--distill.record_temperatures=" + bad},
            {"distill.record_temperatures=" + bad});
  }
  refused({"--teacher.ranks=1", "--distill.record_temperatures=2"}, {"distill.record is empty"});
  refused({"--teacher.ranks=1", "--distill.record=signals", "--distill.search=temperature",
           "--data.valid=corpus/b"},
          {"distill.record=signals"});
}

}  // namespace
}  // namespace athanor::config
