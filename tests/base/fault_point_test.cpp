// Faults on request: parsing, counting, ranks, actions.
#include "base/fault_point.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>

#include "base/error.hpp"
#include "base/stopwatch.hpp"

namespace athanor::base {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

class FaultPoint : public testing::Test {
 protected:
  void TearDown() override { set_faults(""); }
};

TEST_F(FaultPoint, ActsOnTheNamedPassingOfTheNamedRankOnly) {
  set_faults("io.write:1:2:throw,io.read:*:1:throw");
  EXPECT_NO_THROW(fault_point("io.write", 0));
  EXPECT_NO_THROW(fault_point("io.write", 0));
  EXPECT_NO_THROW(fault_point("io.write", 1));
  EXPECT_THAT([] { fault_point("io.write", 1); },
              ThrowsMessage<IoError>(AllOf(HasSubstr("io.write"), HasSubstr("rank 1"))));
  EXPECT_NO_THROW(fault_point("io.write", 1));
  EXPECT_THROW(fault_point("io.read", 7), IoError);
  EXPECT_NO_THROW(fault_point("io", 1));
}

TEST_F(FaultPoint, SleepsKillsAndExits) {
  set_faults("p:0:1:sleep=0.05");
  const Stopwatch watch;
  fault_point("p", 0);
  EXPECT_GE(watch.seconds(), 0.05);
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        set_faults("p:0:1:kill");
        fault_point("p", 0);
      },
      testing::KilledBySignal(SIGKILL), "");
  EXPECT_EXIT(
      {
        set_faults("p:0:1:exit");
        fault_point("p", 0);
      },
      testing::ExitedWithCode(70), "");
}

// A child process that passes the point with this action and then ends with 3.
pid_t pass_in_child(const char* action) {
  const pid_t child = ::fork();
  if (child == 0) {
    set_faults(std::string("p:0:1:") + action);
    fault_point("p", 0);
    std::_Exit(3);
  }
  return child;
}

TEST_F(FaultPoint, StopsUntilItIsContinued) {
  const pid_t child = pass_in_child("stop");
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(WIFSTOPPED(status));
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 3);
}

TEST_F(FaultPoint, HangsForEver) {
  const pid_t child = pass_in_child("hang");
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, WNOHANG), 0);
  ::kill(child, SIGKILL);
  EXPECT_EQ(::waitpid(child, &status, 0), child);
}

TEST_F(FaultPoint, GivesAValueToThoseWhoTakeOne) {
  set_faults("p:1:2:value=100,q:*:1:value=nan,r:0:1:value=-inf");
  EXPECT_EQ(fault_value("p", 1), std::nullopt);
  EXPECT_EQ(fault_value("p", 0), std::nullopt);
  EXPECT_EQ(fault_value("p", 1), 100.0);
  EXPECT_EQ(fault_value("p", 1), std::nullopt);
  EXPECT_TRUE(std::isnan(fault_value("q", 7).value_or(0.0)));
  EXPECT_NO_THROW(fault_point("r", 0)) << "a point that takes none goes on";
}

TEST_F(FaultPoint, RefusesWhatIsMalformed) {
  for (const char* setting : {"p", "p:0:1", "p:0:1:kill:x", ":0:1:kill", "p:-1:1:kill", "p:x:1:kill",
                              "p:0:0:kill", "p:0:1:explode", "p:0:1:sleep=", "p:0:1:sleep=x", "p:0:1:kill,",
                              "p:0:1:sleep=nan", "p:0:1:value=", "p:0:1:value=1x"}) {
    EXPECT_THAT([&] { set_faults(setting); }, ThrowsMessage<ConfigError>(HasSubstr("ATHANOR_FAULT")))
        << setting;
  }
}

TEST_F(FaultPoint, TheEnvironmentIsReadOnce) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("ATHANOR_FAULT", "p:0:1:nothing", 1);
        try {
          read_fault_setting();
        } catch (const ConfigError&) {
          std::_Exit(64);
        }
      },
      testing::ExitedWithCode(64), "");
}

}  // namespace
}  // namespace athanor::base
