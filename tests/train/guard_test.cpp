#include "train/guard.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "train/replica_check.hpp"

namespace athanor::train {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

GuardOptions options(GuardAction action) {
  GuardOptions options;
  options.action = action;
  options.window = 16;
  options.min_steps = 8;
  return options;
}

// Losses around 4 with a median absolute deviation of 0.1, norms around 2.
GuardState filled(const Guard& guard, int steps) {
  GuardState state;
  for (int i = 0; i < steps; ++i) {
    guard.note_ordinary(state, i % 2 == 0 ? 3.9 : 4.1, i % 2 == 0 ? 1.9 : 2.1);
  }
  return state;
}

TEST(RobustSpread, IsMedianAndMedianDeviation) {
  EXPECT_EQ(robust_spread({}).median, 0.0);
  EXPECT_EQ(robust_spread({7.0}).median, 7.0);
  EXPECT_EQ(robust_spread({7.0}).deviation, 0.0);
  const RobustSpread odd = robust_spread({9.0, 1.0, 2.0, 4.0, 100.0});
  EXPECT_EQ(odd.median, 4.0);
  EXPECT_EQ(odd.deviation, 3.0);  // of 5, 3, 2, 0, 96
  const RobustSpread even = robust_spread({4.0, 1.0, 2.0, 3.0});
  EXPECT_EQ(even.median, 2.5);
  EXPECT_EQ(even.deviation, 1.0);  // of 1.5, 1.5, 0.5, 0.5
}

TEST(Guard, WaitsForEnoughSteps) {
  const Guard guard(options(GuardAction::skip));
  EXPECT_FALSE(guard.judge(filled(guard, 7), 1e6, 1e6));
  EXPECT_TRUE(guard.judge(filled(guard, 8), 1e6, 1.0));
}

TEST(Guard, TripsAboveTheDeviationsOfTheMedian) {
  const Guard guard(options(GuardAction::skip));
  const GuardState state = filled(guard, 16);
  EXPECT_FALSE(guard.judge(state, 4.99, 2.0));
  const Trip trip = guard.judge(state, 5.01, 2.0);
  EXPECT_EQ(trip.kind, TripKind::loss);
  EXPECT_NEAR(trip.limit, 5.0, 1e-9);
  EXPECT_EQ(trip.median, 4.0);
  EXPECT_NE(trip.describe(16).find("loss 5.01 above 5"), std::string::npos) << trip.describe(16);
  EXPECT_FALSE(guard.judge(state, 0.5, 2.0)) << "a low loss is no spike";
}

TEST(Guard, TripsAboveTheFactorOfTheMedianNorm) {
  const Guard guard(options(GuardAction::skip));
  const GuardState state = filled(guard, 16);
  EXPECT_FALSE(guard.judge(state, 4.0, 19.9));
  EXPECT_EQ(guard.judge(state, 4.0, 20.1).kind, TripKind::norm);
}

TEST(Guard, LossesThatDoNotMoveHaveAFloor) {
  const Guard guard(options(GuardAction::skip));
  GuardState state;
  for (int i = 0; i < 16; ++i) {
    guard.note_ordinary(state, 2.0, 0.0);
  }
  EXPECT_FALSE(guard.judge(state, 2.19, 1.0)) << "10 deviations of 1 % each; norms of 0 say nothing";
  EXPECT_EQ(guard.judge(state, 2.21, 1.0).kind, TripKind::loss);
}

TEST(Guard, WhatIsNotFiniteTripsAtOnce) {
  const Guard guard(options(GuardAction::warn));
  EXPECT_EQ(guard.judge({}, 1.0, std::nan("")).kind, TripKind::nonfinite_norm);
  EXPECT_EQ(guard.judge({}, infinity, 1.0).kind, TripKind::nonfinite_loss);
  EXPECT_FALSE(Guard(options(GuardAction::off)).judge({}, infinity, std::nan("")));
}

TEST(Guard, TheWindowKeepsTheLastOrdinarySteps) {
  const Guard guard(options(GuardAction::skip));
  GuardState state = filled(guard, 40);
  EXPECT_EQ(state.losses.size(), 16u);
  EXPECT_EQ(state.norms.size(), 16u);
  guard.note_ordinary(state, 5.0, 3.0);
  EXPECT_EQ(state.losses.back(), 5.0);
  EXPECT_EQ(state.norms.back(), 3.0);
  const GuardState before = state;
  guard.note_trip(state, 41);
  EXPECT_EQ(state.losses, before.losses);
  guard.note_ordinary(state, infinity, 1.0);
  EXPECT_EQ(state.losses, before.losses);
}

TEST(Guard, AnotherStageBeginsItsWindowsAnew) {
  const Guard guard(options(GuardAction::skip));
  GuardState state = filled(guard, 16);
  guard.enter(state, "");
  EXPECT_EQ(state.losses.size(), 16u);
  guard.enter(state, "joint");
  EXPECT_TRUE(state.losses.empty());
  EXPECT_TRUE(state.norms.empty());
  EXPECT_FALSE(guard.judge(state, 4.0, 1e6));
}

TEST(Guard, CountsStepsInARow) {
  GuardOptions three = options(GuardAction::rollback);
  three.max_trips = 3;
  three.max_rollbacks = 1;
  const Guard guard(three);
  GuardState state = filled(guard, 16);
  for (std::int64_t step = 17; step < 20; ++step) {
    EXPECT_FALSE(guard.is_too_much(state));
    guard.note_trip(state, step);
  }
  EXPECT_TRUE(guard.is_too_much(state));
  EXPECT_EQ(state.first_bad, 17);
  EXPECT_EQ(state.last_trip, 19);
  EXPECT_EQ(state.trips, 3);
  EXPECT_TRUE(guard.may_roll_back(state));
  state.rollbacks = 1;
  EXPECT_FALSE(guard.may_roll_back(state));
  guard.note_ordinary(state, 4.0, 2.0);
  EXPECT_EQ(state.bad_steps, 0);
  EXPECT_EQ(state.first_bad, 0);
  EXPECT_EQ(state.trips, 3);
}

TEST(Guard, HoldsSavesAfterATrip) {
  GuardOptions held = options(GuardAction::skip);
  held.hold_steps = 5;
  const Guard guard(held);
  GuardState state;
  EXPECT_FALSE(guard.holds(state, 1));
  guard.note_trip(state, 10);
  EXPECT_TRUE(guard.holds(state, 10));
  EXPECT_TRUE(guard.holds(state, 14));
  EXPECT_FALSE(guard.holds(state, 15));
  held.action = GuardAction::warn;
  EXPECT_FALSE(Guard(held).holds(state, 10)) << "a warning holds nothing";
}

TEST(Guard, ARollbackKeepsTheCountersOfTheRun) {
  GuardState stored;
  stored.losses = {1.0};
  stored.norms = {2.0};
  stored.trips = 1;
  stored.last_trip = 3;
  GuardState current = stored;
  current.losses = {5.0, 6.0};
  current.norms = {7.0, 8.0};
  current.bad_steps = 5;
  current.first_bad = 40;
  current.last_trip = 44;
  current.trips = 6;
  current.transients = 2;
  current.repairs = 4;
  current.rollbacks = 1;
  current.passed_over = 30;
  GuardState expected = stored;
  expected.last_trip = 20;
  expected.trips = 6;
  expected.transients = 2;
  expected.repairs = 4;
  expected.rollbacks = 2;
  expected.passed_over = 54;
  EXPECT_EQ(after_rollback(stored, current, 20, 24), expected);
}

TEST(ReplicaSource, IsTheMajorityOfThoseThatDidNotChange) {
  EXPECT_EQ(choose_source({5, 5, 9}, {true, true, true}), 0);
  EXPECT_EQ(choose_source({9, 5, 5}, {true, true, true}), 1);
  EXPECT_EQ(choose_source({9, 5}, {false, true}), 1) << "with two, the one that did not change";
  EXPECT_EQ(choose_source({9, 9, 5}, {false, false, true}), 2);
  EXPECT_EQ(choose_source({9, 5}, {true, true}), -1) << "nobody knows which";
  EXPECT_EQ(choose_source({9}, {false}), -1);
  EXPECT_EQ(choose_source({1, 1, 2, 2}, {true, true, true, true}), -1);
}

}  // namespace
}  // namespace athanor::train
