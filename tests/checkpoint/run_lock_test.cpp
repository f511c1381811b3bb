// One job a run folder: refusal by name, release, dead holders, with and without flock.
#include "checkpoint/run_lock.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/detail/lock_holder.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

class RunLockTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "run_lock_XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    run_ = pattern;
  }
  void TearDown() override { fs::remove_all(run_); }

  std::string text() const {
    std::ifstream file(run_ + "/.lock");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string run_;
};

// A child that takes the lock and stays; returns when it has it.
pid_t start_holder(const std::string& run) {
  int ready[2] = {-1, -1};
  if (::pipe(ready) != 0) {
    return -1;
  }
  const pid_t child = ::fork();
  if (child == 0) {
    const RunLock lock(run);
    [[maybe_unused]] const auto told = ::write(ready[1], "x", 1);
    while (true) {
      ::pause();
    }
  }
  char byte = 0;
  const auto count = ::read(ready[0], &byte, 1);
  ::close(ready[0]);
  ::close(ready[1]);
  return count == 1 ? child : -1;
}

void end_holder(pid_t child) {
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST_F(RunLockTest, ASecondJobIsRefusedAndToldWhoHoldsIt) {
  const RunLock first(run_);
  const detail::LockHolder self = detail::this_process();
  EXPECT_THAT(
      [&] { RunLock second(run_); },
      ThrowsMessage<base::CannotCreateError>(
          AllOf(HasSubstr(run_), HasSubstr("process " + std::to_string(::getpid())), HasSubstr(self.host))));
}

TEST_F(RunLockTest, TheSlurmJobIsNamed) {
  ::setenv("SLURM_JOB_ID", "4711", 1);
  const RunLock first(run_);
  ::unsetenv("SLURM_JOB_ID");
  EXPECT_THAT([&] { RunLock second(run_); },
              ThrowsMessage<base::CannotCreateError>(HasSubstr("Slurm job 4711")));
}

TEST_F(RunLockTest, IsFreeAfterItsHolderAndMoves) {
  {
    RunLock first(run_);
    RunLock moved = std::move(first);
    EXPECT_THROW(RunLock{run_}, base::CannotCreateError);
  }
  EXPECT_EQ(text(), "");
  std::optional<RunLock> second(std::in_place, run_);
  EXPECT_NE(text(), "");
  second.reset();
  EXPECT_NO_THROW(RunLock{run_});
}

TEST_F(RunLockTest, AnotherProcessIsNamedAndAKilledOnesLockIsTakenOver) {
  const pid_t holder = start_holder(run_);
  ASSERT_GT(holder, 0);
  EXPECT_THAT([&] { RunLock second(run_); },
              ThrowsMessage<base::CannotCreateError>(HasSubstr("process " + std::to_string(holder))));
  end_holder(holder);
  EXPECT_EQ(detail::holder_from_text(text()).process, holder);  // it could not clean up
  EXPECT_NO_THROW(RunLock{run_});
}

TEST_F(RunLockTest, UnwritableOrMissingFoldersAreNamed) {
  EXPECT_THAT(
      [&] { RunLock lock(run_ + "/none"); },
      ThrowsMessage<base::CannotCreateError>(AllOf(HasSubstr("/none/.lock"), HasSubstr("No such file"))));
  fs::create_symlink("/etc/hostname", run_ + "/.lock");
  EXPECT_THROW(RunLock{run_}, base::CannotCreateError);  // it would be emptied
}

TEST_F(RunLockTest, DamagedTextDoesNotKeepTheRunLocked) {
  for (const char* bytes : {"garbage", "{\"host\":", "[1]", "{\"host\":3}", "\xff\xfe"}) {
    std::ofstream(run_ + "/.lock") << bytes;
    EXPECT_NO_THROW(RunLock{run_}) << bytes;
  }
}

TEST(LockHolder, RoundTripsAndKnowsTheDead) {
  detail::LockHolder self = detail::this_process();
  EXPECT_EQ(detail::holder_from_text(detail::to_text(self)), self);
  EXPECT_GT(self.process_start, 0);
  EXPECT_FALSE(detail::is_known_dead(self));
  detail::LockHolder reused = self;  // the id of a process that has ended, given to another one
  reused.process_start += 1;
  EXPECT_TRUE(detail::is_known_dead(reused));
  detail::LockHolder elsewhere = reused;
  elsewhere.host += "-not";
  EXPECT_FALSE(detail::is_known_dead(elsewhere));
  const pid_t child = ::fork();
  if (child == 0) {
    std::_Exit(0);
  }
  ::waitpid(child, nullptr, 0);
  detail::LockHolder ended = self;
  ended.process = child;
  EXPECT_TRUE(detail::is_known_dead(ended));
}

}  // namespace
}  // namespace athanor::checkpoint
