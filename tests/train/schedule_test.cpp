#include "train/schedule.hpp"

#include <gtest/gtest.h>

namespace athanor::train {
namespace {

TEST(Schedule, AccumulationRunsForwardAndBackwardOfEachMicroBatchInTurn) {
  const Schedule schedule = accumulation_schedule(3);
  ASSERT_EQ(schedule.size(), 6u);
  for (std::int64_t i = 0; i < 3; ++i) {
    const Action& forward = schedule[static_cast<std::size_t>(2 * i)];
    const Action& backward = schedule[static_cast<std::size_t>(2 * i + 1)];
    EXPECT_EQ(forward.kind, ActionKind::forward);
    EXPECT_EQ(backward.kind, ActionKind::backward);
    EXPECT_EQ(forward.micro_batch, i);
    EXPECT_EQ(backward.micro_batch, i);
    EXPECT_EQ(forward.stage, 0);
  }
  EXPECT_TRUE(accumulation_schedule(0).empty());
}

}  // namespace
}  // namespace athanor::train
