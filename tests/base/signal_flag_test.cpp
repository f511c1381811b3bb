#include "base/signal_flag.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <thread>

namespace athanor::base {
namespace {

class SignalFlag : public testing::Test {
 protected:
  void SetUp() override { catch_stop_signals(); }
  void TearDown() override {
    forget_stop_signal();
    for (const int signal : {SIGUSR1, SIGUSR2, SIGTERM}) {
      ::signal(signal, SIG_DFL);
    }
  }
};

TEST_F(SignalFlag, EachIsNotedAndEndsNothing) {
  for (const int signal : {SIGUSR1, SIGUSR2, SIGTERM}) {
    forget_stop_signal();
    EXPECT_EQ(stop_signal(), 0);
    ASSERT_EQ(raise(signal), 0);
    EXPECT_EQ(stop_signal(), signal);
  }
  EXPECT_EQ(signal_name(SIGUSR2), "SIGUSR2");
}

TEST_F(SignalFlag, LaterOnesChangeNothing) {
  raise(SIGTERM);
  raise(SIGUSR1);
  raise(SIGTERM);
  EXPECT_EQ(stop_signal(), SIGTERM);
}

TEST_F(SignalFlag, AnInterruptedReadGoesOn) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const pthread_t reader = pthread_self();
  std::thread sender([&] {
    usleep(50000);
    pthread_kill(reader, SIGUSR1);
    usleep(50000);
    EXPECT_EQ(write(ends[1], "x", 1), 1);
  });
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 1);
  sender.join();
  EXPECT_EQ(byte, 'x');
  EXPECT_EQ(stop_signal(), SIGUSR1);
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace athanor::base
