// When a job hangs and who is to blame, with a clock and heartbeats made up here.
#include "train/watchdog_rules.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "base/activity.hpp"
#include "train/activity_board.hpp"

namespace athanor::train {
namespace {

using base::Heartbeat;
using base::Span;
using base::SpanKind;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr double silent_s = 3.0;

TEST(StallClock, CountsWhileNothingChanges) {
  StallClock clock(0.5);
  clock.tick(100.0, 1);
  clock.tick(100.5, 1);
  clock.tick(101.0, 1);
  EXPECT_DOUBLE_EQ(clock.stalled_s(), 1.0);
  clock.tick(101.5, 2);
  EXPECT_DOUBLE_EQ(clock.stalled_s(), 0.0);
  clock.tick(102.0, 2);
  EXPECT_DOUBLE_EQ(clock.stalled_s(), 0.5);
}

TEST(StallClock, AJumpStartsTheCountAnew) {
  StallClock clock(0.5);
  clock.tick(0.0, 1);
  clock.tick(0.5, 1);
  clock.tick(3600.5, 1);  // the whole job was stopped for an hour
  EXPECT_TRUE(clock.has_jumped());
  EXPECT_DOUBLE_EQ(clock.stalled_s(), 0.0);
  EXPECT_DOUBLE_EQ(clock.elapsed_s(), 0.0);
  clock.tick(3601.0, 1);
  EXPECT_FALSE(clock.has_jumped());
  EXPECT_DOUBLE_EQ(clock.stalled_s(), 0.5);
}

TEST(StallClock, LateTicksOfABusyMachineStillCount) {
  StallClock clock(0.1);
  clock.tick(0.0, 1);
  clock.tick(0.9, 1);
  EXPECT_DOUBLE_EQ(clock.stalled_s(), 0.9);
}

// A collective of ranks [first, first + count).
struct Collective {
  std::uint64_t group = 1;
  std::int64_t number = 10;
  int first = 0;
  int count = 4;
};

Heartbeat somewhere() {
  Heartbeat beat;
  beat.step = 7;
  beat.phase = base::WatchedPhase::step;
  beat.host.set("node");
  beat.role.set("teacher");
  return beat;
}

RankSight computing(bool is_late) {
  RankSight sight;
  sight.beat = somewhere();
  sight.beat->is_late = is_late ? 1 : 0;
  sight.life = ProcessLife::running;
  return sight;
}

RankSight waiting(const Collective& in) {
  RankSight sight = computing(true);
  Heartbeat& beat = *sight.beat;
  beat.is_in_collective = 1;
  beat.operation.set("all_reduce");
  beat.group.set("world.teacher");
  beat.file.set("train/step_sums.cpp");
  beat.line = 46;
  beat.number = in.number;
  beat.group_id = in.group;
  beat.num_members = 1;
  beat.members[0] = {in.first, 1, in.count};
  beat.groups[0] = {in.group, in.number};
  return sight;
}

// Out of all collectives, the last of them done.
RankSight after(const Collective& done, bool is_late) {
  RankSight sight = waiting(done);
  sight.beat->is_in_collective = 0;
  sight.beat->is_late = is_late ? 1 : 0;
  return sight;
}

const Collective all_four{};
const Collective one_before{.number = 9};

TEST(Judge, ALateRankOutsideOfCollectivesIsToBlame) {
  const std::vector<RankSight> ranks = {waiting(all_four), waiting(all_four), after(one_before, true),
                                        waiting(all_four)};
  for (const int own : {0, 2, 3}) {
    const Verdict verdict = judge(ranks, own, silent_s);
    EXPECT_TRUE(verdict.is_hang);
    EXPECT_THAT(verdict.causes, ElementsAre(2));
  }
}

TEST(Judge, AStoppedGoneOrSilentRankIsToBlame) {
  for (const ProcessLife life : {ProcessLife::stopped, ProcessLife::gone, ProcessLife::unknown}) {
    std::vector<RankSight> ranks(4, waiting(all_four));
    ranks[1] = after(one_before, false);
    ranks[1].life = life;
    ranks[1].silent_s = life == ProcessLife::unknown ? 3.5 : 0.1;
    const Verdict verdict = judge(ranks, 3, silent_s);
    EXPECT_TRUE(verdict.is_hang);
    EXPECT_THAT(verdict.causes, ElementsAre(1));
  }
}

TEST(Judge, ARankThatWasNeverHeardOfIsToBlameAfterItsTime) {
  std::vector<RankSight> ranks(4, waiting(all_four));
  ranks[0] = {};
  EXPECT_FALSE(judge(ranks, 3, silent_s).is_hang && !judge(ranks, 3, silent_s).causes.empty() &&
               ranks[0].silent_s >= silent_s);
  ranks[0].silent_s = 4.0;
  EXPECT_THAT(judge(ranks, 3, silent_s).causes, ElementsAre(0));
}

TEST(Judge, WhoWaitsForARankThatGoesOnIsLeftAlone) {
  // Rank 3 evaluates for an hour; 2 waits for it in a group of two, 0 and 1 wait for both.
  const Collective pair{.group = 2, .number = 4, .first = 2, .count = 2};
  std::vector<RankSight> ranks = {waiting(all_four), waiting(all_four), waiting(pair), computing(false)};
  for (const int own : {0, 1, 2}) {
    EXPECT_FALSE(judge(ranks, own, silent_s).is_hang) << own;
  }
  ranks[3] = computing(true);
  for (const int own : {0, 1, 2, 3}) {
    EXPECT_THAT(judge(ranks, own, silent_s).causes, ElementsAre(3)) << own;
  }
}

TEST(Judge, AWaitWithADeadlineOfItsOwnIsNotLate) {
  std::vector<RankSight> ranks(4, waiting(all_four));
  ranks[2] = after(one_before, false);
  ranks[2].beat->has_own_deadline = 1;
  EXPECT_FALSE(judge(ranks, 0, silent_s).is_hang);
  ranks[1] = after(one_before, true);  // but another one is to blame
  EXPECT_THAT(judge(ranks, 0, silent_s).causes, ElementsAre(1));
  EXPECT_THAT(judge(ranks, 2, silent_s).causes, ElementsAre(1));
}

TEST(Judge, RanksThatWaitForEachOtherInTwoCollectivesHang) {
  const Collective first{.group = 1, .number = 3, .first = 0, .count = 2};
  const Collective second{.group = 2, .number = 3, .first = 0, .count = 2};
  const std::vector<RankSight> ranks = {waiting(first), waiting(second)};
  EXPECT_THAT(judge(ranks, 0, silent_s).causes, ElementsAre(1));
  EXPECT_THAT(judge(ranks, 1, silent_s).causes, ElementsAre(0));
  EXPECT_TRUE(judge(ranks, 0, silent_s).is_hang);
}

TEST(Judge, ACollectiveThatAllHaveComeToAndNobodyLeavesHangs) {
  std::vector<RankSight> ranks(4, waiting(all_four));
  EXPECT_TRUE(judge(ranks, 0, silent_s).is_hang);
  EXPECT_THAT(judge(ranks, 0, silent_s).causes, ElementsAre());
  ranks[1] = after(all_four, false);  // out of it already: the rest may follow
  EXPECT_FALSE(judge(ranks, 0, silent_s).is_hang);
}

TEST(SomebodyGoesOn, CountsWhoMovesAndIsHeardOf) {
  std::vector<RankSight> ranks(3, waiting(all_four));
  for (RankSight& rank : ranks) {
    rank.beat->stalled_s = 10.0;
  }
  EXPECT_FALSE(somebody_goes_on(ranks, silent_s, 5.0));
  ranks[1].beat->stalled_s = 1.0;
  EXPECT_TRUE(somebody_goes_on(ranks, silent_s, 5.0));
  ranks[1].life = ProcessLife::stopped;
  EXPECT_FALSE(somebody_goes_on(ranks, silent_s, 5.0));
  ranks[2] = {};
  EXPECT_FALSE(somebody_goes_on(ranks, silent_s, 5.0));
}

TEST(RankList, JoinsNeighbours) {
  EXPECT_EQ(rank_list({}), "");
  EXPECT_EQ(rank_list({4}), "4");
  EXPECT_EQ(rank_list({0, 1, 2, 5, 7, 8}), "0-2,5,7-8");
}

TEST(DescribeRanks, NamesPlacesCollectiveAndMissingRank) {
  std::vector<RankSight> ranks(4, waiting(all_four));
  ranks[2] = after(one_before, true);
  ranks[2].life = ProcessLife::stopped;
  ranks[2].process_state = 'T';
  std::string text;
  const std::vector<std::string> lines = describe_ranks(ranks, judge(ranks, 0, silent_s));
  for (const std::string& line : lines) {
    text += line + "\n";
  }
  EXPECT_THAT(text, HasSubstr("ranks 0-1,3: step 7, step, inside all_reduce number 10 of group world.teacher "
                              "(train/step_sums.cpp:46)"));
  EXPECT_THAT(text,
              HasSubstr("rank 2 (teacher, host node, process 0): step 7, step, after all_reduce number 9"));
  EXPECT_THAT(text, HasSubstr("rank(s) 2 missing from all_reduce number 10 of group world.teacher"));
  EXPECT_THAT(text, HasSubstr("in which rank(s) 0-1,3 wait"));
  EXPECT_THAT(text, HasSubstr("to blame: rank 2"));
  EXPECT_THAT(text, HasSubstr("its process is stopped (state T)"));
  EXPECT_EQ(lines.size(), 4U);
}

TEST(ActivityBoard, ShowsStepPhaseAndCollective) {
  ActivityBoard board;
  const base::SpanObservation observation(board);
  Heartbeat beat;
  const std::uint64_t before = board.read(beat);
  EXPECT_EQ(beat.phase, base::WatchedPhase::start);
  const base::ScopedSpan step(Span{.kind = SpanKind::step, .name = "step", .number = 9});
  const base::ScopedSpan phase(SpanKind::phase, "forward");
  const std::vector<int> members = {1, 3, 5, 7, 20, 21};
  {
    const base::ScopedSpan collective(Span{.kind = SpanKind::collective,
                                           .name = "all_to_all_v",
                                           .group = "world.tp",
                                           .number = 41,
                                           .site = {"/somewhere/src/moe/x.cpp", 12},
                                           .members = members});
    EXPECT_EQ(board.read(beat) - before, 3U);
    EXPECT_EQ(beat.phase, base::WatchedPhase::step);
    EXPECT_EQ(beat.step, 9);
    EXPECT_EQ(beat.place.view(), "forward");
    EXPECT_EQ(beat.is_in_collective, 1);
    EXPECT_EQ(beat.operation.view(), "all_to_all_v");
    EXPECT_EQ(beat.file.view(), "moe/x.cpp");
    EXPECT_EQ(beat.number, 41);
    ASSERT_EQ(beat.num_members, 2);
    EXPECT_EQ(beat.members[0].stride, 2);
    EXPECT_EQ(beat.members[0].count, 4);
    EXPECT_EQ(beat.members[1].first, 20);
    EXPECT_EQ(beat.groups[0].number, 41);
  }
  board.read(beat);
  EXPECT_EQ(beat.is_in_collective, 0);
  EXPECT_EQ(beat.number, 41);
}

TEST(ActivityBoard, WaitsAndFilesAreNoProgressAndOtherThreadsAreNotSeen) {
  ActivityBoard board;
  const base::SpanObservation observation(board);
  Heartbeat beat;
  const std::uint64_t before = board.read(beat);
  std::thread([] { const base::ScopedSpan span(SpanKind::phase, "elsewhere"); }).join();
  {
    const base::ScopedSpan io(SpanKind::io, "read");
    const base::ScopedSpan wait(SpanKind::wait, "wait for messages");
    EXPECT_EQ(board.read(beat), before);
    EXPECT_EQ(beat.has_own_deadline, 1);
  }
  EXPECT_EQ(board.read(beat), before);
  EXPECT_EQ(beat.has_own_deadline, 0);
}

TEST(ActivityBoard, KnowsEvaluationsAndSaves) {
  ActivityBoard board;
  const base::SpanObservation observation(board);
  Heartbeat beat;
  {
    const base::ScopedSpan span(SpanKind::phase, "evaluation");
    board.read(beat);
    EXPECT_EQ(beat.phase, base::WatchedPhase::evaluate);
  }
  const base::ScopedSpan span(SpanKind::phase, "checkpoint");
  const base::ScopedSpan inner(SpanKind::compute, "copy");
  board.read(beat);
  EXPECT_EQ(beat.phase, base::WatchedPhase::save);
  EXPECT_EQ(beat.place.view(), "checkpoint > copy");
}

TEST(ActivityBoard, KeepsTheGroupsThatWereUsedLast) {
  ActivityBoard board;
  const base::SpanObservation observation(board);
  for (int i = 0; i < 100; ++i) {
    const std::string group = "group" + std::to_string(i % 60);
    const base::ScopedSpan span(
        Span{.kind = SpanKind::collective, .name = "barrier", .group = group, .number = i});
  }
  Heartbeat beat;
  board.read(beat);
  EXPECT_EQ(beat.groups[0].number, 99);
  EXPECT_EQ(beat.groups[47].number, 52);
}

}  // namespace
}  // namespace athanor::train
