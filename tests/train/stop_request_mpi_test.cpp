#include "train/stop_request.hpp"

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <ctime>
#include <string>
#include <thread>

#include "base/signal_flag.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/process_grid.hpp"
#include "support/mpi_test.hpp"

namespace athanor::train {
namespace {

using tests::world;

class StopRequests : public testing::Test {
 protected:
  void SetUp() override {
    base::catch_stop_signals();
    base::forget_stop_signal();
  }
  void TearDown() override { base::forget_stop_signal(); }
};

StopOptions with_time_left(std::int64_t seconds) {
  StopOptions options;
  options.end_time = std::time(nullptr) + seconds;
  options.margin_s = 10.0;
  return options;
}

TEST_F(StopRequests, NobodyWantsToStopWithoutAReason) {
  StopRequest stop({}, world(), world());
  EXPECT_TRUE(stop.is_only_role());
  EXPECT_FALSE(stop.is_wanted());
  EXPECT_FALSE(stop.agree(world()));
  EXPECT_EQ(stop.conclude(false, world()), "");
}

TEST_F(StopRequests, ASignalToTheLastRankStopsAll) {
  StopRequest stop({}, world(), world());
  const int last = world().size() - 1;
  if (world().rank() == last) {
    raise(SIGUSR2);
  }
  EXPECT_EQ(stop.is_wanted(), world().rank() == last);
  EXPECT_TRUE(stop.agree(world()));
  const std::string reason = stop.conclude(true, world());
  EXPECT_EQ(reason, last == 0 ? "SIGUSR2" : "rank " + std::to_string(last) + ": SIGUSR2");
}

TEST_F(StopRequests, TimeLeftIsComparedWithWhatTheRestWouldTake) {
  StopRequest stop(with_time_left(60), world(), world());
  EXPECT_FALSE(stop.is_wanted());  // nothing measured yet: only the margin
  stop.times().note_step(10.0);
  stop.times().note_save(5.0);
  EXPECT_FALSE(stop.is_wanted());  // 10 + 1.5 * (10 + 5) = 32.5
  stop.times().note_step(40.0);
  EXPECT_TRUE(stop.is_wanted());  // 77.5
  EXPECT_NE(stop.conclude(true, world()).find("run.end_time"), std::string::npos);
}

TEST_F(StopRequests, StepsAheadCountEach) {
  StopOptions options = with_time_left(100);
  options.steps_ahead = 4;
  StopRequest stop(options, world(), world());
  stop.times().note_step(10.0);
  EXPECT_FALSE(stop.is_wanted());  // 10 + 60
  stop.times().note_step(16.0);
  EXPECT_TRUE(stop.is_wanted());  // 10 + 96
}

TEST(TimeEstimate, ForgetsLongStepsOfLongAgo) {
  TimeEstimate times;
  EXPECT_EQ(times.seconds_for(3), 0.0);
  times.note_step(100.0);
  times.note_save(4.0);
  EXPECT_DOUBLE_EQ(times.seconds_for(1), 1.5 * 104.0);
  for (int i = 0; i < 100; ++i) {
    times.note_step(2.0);
  }
  EXPECT_DOUBLE_EQ(times.seconds_for(2), 1.5 * (4.0 + 4.0));
}

// Two roles: the last rank alone is the second one.
TEST_F(StopRequests, ARankOfAnotherRoleTellsTheLeader) {
  if (world().size() < 2) {
    GTEST_SKIP() << "needs two ranks";
  }
  const bool follows = world().rank() == world().size() - 1;
  const parallel::Communicator role = world().split(follows ? 1 : 0, world().rank(), "role");
  StopRequest stop({}, world(), role);
  EXPECT_FALSE(stop.is_only_role());
  if (follows) {
    raise(SIGTERM);
    EXPECT_TRUE(stop.is_wanted());
  } else {
    bool hears = false;
    for (int i = 0; i < 500 && !hears; ++i) {
      hears = stop.agree(role);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_TRUE(hears);
    EXPECT_EQ(stop.is_wanted(), world().rank() == 0);  // the letter's reader; the others know by agreement
  }
  const std::string reason = stop.conclude(true, world());
  EXPECT_NE(reason.find("SIGTERM"), std::string::npos) << reason;
}

}  // namespace
}  // namespace athanor::train
