#include "optim/loss_scaler.hpp"

#include <gtest/gtest.h>

namespace athanor::optim {
namespace {

TEST(LossScaler, StartsAtTwoToTheSixteenAndHalves) {
  LossScaler scaler(true);
  EXPECT_EQ(scaler.scale(), 65536.0);
  scaler.update(false);
  EXPECT_EQ(scaler.scale(), 32768.0);
  scaler.update(false);
  EXPECT_EQ(scaler.scale(), 16384.0);
}

TEST(LossScaler, HalvingsBeforeTheFirstGoodStepAreNoRunOfSkips) {
  LossScaler scaler(true);
  scaler.update(false);
  scaler.update(false);
  EXPECT_EQ(scaler.state().consecutive_skips, 0);
  EXPECT_EQ(scaler.state().total_skips, 2);
  scaler.update(true);
  scaler.update(false);
  scaler.update(false);
  EXPECT_EQ(scaler.state().consecutive_skips, 2);
  EXPECT_EQ(scaler.state().total_skips, 4);
  scaler.update(true);
  EXPECT_EQ(scaler.state().consecutive_skips, 0);
  EXPECT_EQ(scaler.state().total_skips, 4);
}

TEST(LossScaler, StopsHalvingAtOneAndCountsFromThere) {
  LossScaler scaler(true);
  for (int i = 0; i < 16; ++i) {
    scaler.update(false);
  }
  EXPECT_EQ(scaler.scale(), 1.0);
  EXPECT_EQ(scaler.state().consecutive_skips, 0);
  scaler.update(false);
  EXPECT_EQ(scaler.scale(), 1.0);
  EXPECT_EQ(scaler.state().consecutive_skips, 1);
}

TEST(LossScaler, DoublesAfterEnoughCleanStepsOnly) {
  LossScaler scaler(true, 3);
  scaler.update(true);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 65536.0);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 131072.0);
  scaler.update(true);
  scaler.update(true);
  scaler.update(false);  // starts the count again
  EXPECT_EQ(scaler.scale(), 65536.0);
  scaler.update(true);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 65536.0);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 131072.0);
}

TEST(LossScaler, FixedScaleStaysOneAndCountsEverySkip) {
  LossScaler scaler(false, 1);
  scaler.update(false);
  scaler.update(false);
  EXPECT_EQ(scaler.state().consecutive_skips, 2);
  for (int i = 0; i < 5; ++i) {
    scaler.update(true);
  }
  EXPECT_EQ(scaler.scale(), 1.0);
  EXPECT_EQ(scaler.state().total_skips, 2);
}

TEST(LossScaler, StateCarriesOn) {
  LossScaler first(true, 3);
  first.update(true);
  first.update(false);
  first.update(true);
  first.update(true);
  LossScaler second(true, 3);
  second.set_state(first.state());
  first.update(true);
  second.update(true);
  EXPECT_EQ(first.state(), second.state());
  EXPECT_EQ(second.scale(), 65536.0);
}

}  // namespace
}  // namespace athanor::optim
