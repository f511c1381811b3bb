// Whose own time stands out, with times made up here.
#include "train/straggler.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "base/activity.hpp"

namespace athanor::train {
namespace {

using base::SpanKind;

// Seconds in forward and backward.
PhaseTimes times(double forward_s, double backward_s) {
  PhaseTimes all{};
  all[1] = forward_s;
  all[2] = backward_s;
  return all;
}

TEST(CompareTimes, EqualRanksAreNoStragglers) {
  const std::vector<PhaseTimes> ranks = {times(1.0, 2.0), times(1.1, 1.9), times(0.9, 2.1), times(1.3, 2.2)};
  const auto scores = compare_times(ranks, {});
  ASSERT_EQ(scores.size(), 1U);  // the slowest is told of, not blamed
  EXPECT_EQ(scores[0].rank, 3);
  EXPECT_FALSE(scores[0].is_straggler);
  EXPECT_NEAR(scores[0].score, 3.0 / 3.5, 1e-12);
}

TEST(CompareTimes, NamesTheSlowRankAndItsPhase) {
  for (const std::size_t size : {2U, 3U, 8U}) {
    std::vector<PhaseTimes> ranks(size, times(1.0, 2.0));
    ranks[1] = times(1.0, 8.0);
    const auto scores = compare_times(ranks, {});
    ASSERT_EQ(scores.size(), 1U);
    EXPECT_EQ(scores[0].rank, 1);
    EXPECT_TRUE(scores[0].is_straggler);
    EXPECT_NEAR(scores[0].score, 3.0 / 9.0, 1e-12);
    EXPECT_EQ(scores[0].phase, "backward");
  }
}

TEST(CompareTimes, NamesSeveralAndForgivesMilliseconds) {
  std::vector<PhaseTimes> ranks(6, times(1.0, 2.0));
  ranks[2] = times(9.0, 2.0);
  ranks[5] = times(1.0, 20.0);
  const auto scores = compare_times(ranks, {});
  ASSERT_EQ(scores.size(), 2U);
  EXPECT_EQ(scores[0].rank, 5);
  EXPECT_EQ(scores[1].rank, 2);
  std::vector<PhaseTimes> quick(4, times(0.001, 0.001));
  quick[0] = times(0.005, 0.002);
  EXPECT_FALSE(compare_times(quick, {}).at(0).is_straggler);
}

TEST(CompareTimes, OneRankAloneIsNoStraggler) {
  const auto scores = compare_times({times(1.0, 2.0)}, {});
  ASSERT_EQ(scores.size(), 1U);
  EXPECT_FALSE(scores[0].is_straggler);
}

TEST(OwnTime, WaitsForOthersEvaluationsAndSavesAreNobodys) {
  const auto work = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
  OwnTime own;
  const base::SpanObservation observation(own);
  own.take();
  {
    const base::ScopedSpan step(SpanKind::step, "step");
    {
      const base::ScopedSpan phase(SpanKind::phase, "forward");
      const base::ScopedSpan layer(SpanKind::compute, "experts");
      work();
      const base::ScopedSpan exchange(SpanKind::collective, "all_to_all_v");
      work();
    }
    const base::ScopedSpan wait(SpanKind::wait, "wait for messages");
    work();
  }
  {
    const base::ScopedSpan data(SpanKind::wait, "data");
    work();
  }
  {
    const base::ScopedSpan evaluation(SpanKind::phase, "evaluation");
    const base::ScopedSpan phase(SpanKind::phase, "forward");
    work();
  }
  work();
  const PhaseTimes taken = own.take();
  const auto is_one = testing::AllOf(testing::Ge(0.019), testing::Lt(0.038));
  EXPECT_THAT(taken[0], is_one);  // data
  EXPECT_THAT(taken[1], is_one);  // forward
  EXPECT_THAT(taken[6], is_one);  // other
  EXPECT_LT(taken[2] + taken[3] + taken[4] + taken[5], 0.001);
}

}  // namespace
}  // namespace athanor::train
