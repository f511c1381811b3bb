// Records that other processes read: whole or not at all, of this job only.
#include "base/heartbeat.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>

namespace athanor::base {
namespace {

namespace fs = std::filesystem;

class HeartbeatFile : public testing::Test {
 protected:
  HeartbeatFile() {
    fs::create_directories(folder_);
    heartbeat_.host.set("node-7");
    heartbeat_.step = 12;
    heartbeat_.phase = WatchedPhase::evaluate;
    heartbeat_.group.set("world.teacher");
    heartbeat_.members[1] = {3, 2, 5};
    heartbeat_.groups[2] = {77, 8};
  }
  ~HeartbeatFile() override { fs::remove_all(folder_); }

  std::string folder_ = (fs::temp_directory_path() / ("heartbeat_" + std::to_string(::getpid()))).string();
  std::string path_ = folder_ + "/rank-0";
  Heartbeat heartbeat_;
};

TEST_F(HeartbeatFile, ReadsBackWhatWasWritten) {
  for (const std::int64_t beats : {1, 2}) {
    heartbeat_.beats = beats;
    ASSERT_EQ(write_heartbeat(path_, 5, heartbeat_), 0);
    const auto read = read_heartbeat(path_, 5);
    ASSERT_TRUE(read);
    EXPECT_EQ(read->beats, beats);
    EXPECT_EQ(read->host.view(), "node-7");
    EXPECT_EQ(read->step, 12);
    EXPECT_EQ(read->phase, WatchedPhase::evaluate);
    EXPECT_EQ(read->group.view(), "world.teacher");
    EXPECT_EQ(read->members[1].stride, 2);
    EXPECT_EQ(read->groups[2].number, 8);
  }
}

TEST_F(HeartbeatFile, OtherJobsDamagedShortAndMissingOnesAreNothing) {
  EXPECT_FALSE(read_heartbeat(path_, 5));
  ASSERT_EQ(write_heartbeat(path_, 5, heartbeat_), 0);
  EXPECT_FALSE(read_heartbeat(path_, 6));
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(200);
    file.put('!');
  }
  EXPECT_FALSE(read_heartbeat(path_, 5));
  fs::resize_file(path_, 100);
  EXPECT_FALSE(read_heartbeat(path_, 5));
  ASSERT_EQ(write_heartbeat(path_, 5, heartbeat_), 0);
  EXPECT_TRUE(read_heartbeat(path_, 5));
}

TEST_F(HeartbeatFile, AMissingFolderIsAnErrorNumber) {
  EXPECT_EQ(write_heartbeat(folder_ + "/gone/rank-0", 5, heartbeat_), ENOENT);
}

TEST(FixedText, LongTextsLoseTheirEnd) {
  FixedText<4> text;
  text.set("abcdef");
  EXPECT_EQ(text.view(), "abc");
  text.set("");
  EXPECT_EQ(text.view(), "");
}

TEST(ProcessStateOf, KnowsThisProcessAndNoOther) {
  const auto own = process_state(::getpid());
  ASSERT_TRUE(own);
  EXPECT_EQ(own->letter, 'R');
  EXPECT_GT(own->start, 0U);
  EXPECT_EQ(process_state(::getpid())->start, own->start);
  EXPECT_FALSE(process_state(0));
}

}  // namespace
}  // namespace athanor::base
