// Saving where space ends or writing is forbidden: the save fails on all ranks alike, the older checkpoint
// stays.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>

#include "base/error.hpp"
#include "checkpoint/checkpoint_writer.hpp"
#include "checkpoint/writer_fixture.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using tests::CheckpointWriterTest;
using tests::expect_stored;
using tests::RankState;
using tests::world;

// A small file system of its own, where the machine lets the test mount one.
class SmallDiskTest : public CheckpointWriterTest {
 protected:
  void SetUp() override {
    CheckpointWriterTest::SetUp();
    options_.mode = SaveMode::sync;
    int error = 0;
    if (world().rank() == 0) {
      fs::create_directories(root_ / "run");
      error = ::mount("none", (root_ / "run").c_str(), "tmpfs", 0, "size=8m") == 0 ? 0 : errno;
    }
    const std::string reason =
        parallel::broadcast_string(error == 0 ? "" : std::generic_category().message(error), 0, world());
    is_mounted_ = reason.empty();
    if (!is_mounted_) {
      GTEST_SKIP() << "no small file system can be mounted here (" << reason << ")";
    }
  }
  void TearDown() override {
    world().barrier();
    if (world().rank() == 0 && is_mounted_) {
      EXPECT_EQ(::umount2((root_ / "run").c_str(), MNT_DETACH), 0);
    }
    CheckpointWriterTest::TearDown();
  }
  void remount(unsigned long flags) {
    world().barrier();
    if (world().rank() == 0) {
      ASSERT_EQ(::mount("none", (root_ / "run").c_str(), "tmpfs", MS_REMOUNT | flags, "size=8m"), 0)
          << std::generic_category().message(errno);
    }
    world().barrier();
  }

  bool is_mounted_ = false;
};

TEST_F(SmallDiskTest, TooLittleSpaceIsSeenBeforeWriting) {
  CheckpointWriter writer(options_, world());
  RankState small(world().rank(), world().size());
  writer.prepare(small.slices());
  const SaveVerdict older = save(writer, small, 1);
  ASSERT_TRUE(older.published) << older.reason;
  RankState large(world().rank(), world().size(), 500'000);  // 10 MB a rank
  writer.prepare(large.slices());
  const SaveVerdict failed = save(writer, large, 2);
  EXPECT_FALSE(failed.published);
  EXPECT_THAT(failed.reason, AllOf(HasSubstr("rank 0: "), HasSubstr("bytes free"), HasSubstr("are needed")));
  expect_agreed(failed);
  EXPECT_THAT(names_in_folder(), ElementsAre("latest", "step-00000001"));
  expect_stored(older.path, 1, small.total_rows());
  world().barrier();
  writer.prepare(small.slices());
  EXPECT_TRUE(save(writer, small, 2).published);
}

TEST_F(SmallDiskTest, ADiskThatFillsUpWhileWritingFailsTheSaveOnly) {
  CheckpointWriter writer(options_, world());
  RankState small(world().rank(), world().size());
  writer.prepare(small.slices());  // the preflight will take every save to be this small
  const SaveVerdict older = save(writer, small, 1);
  ASSERT_TRUE(older.published) << older.reason;
  RankState large(world().rank(), world().size(), 500'000);
  const SaveVerdict failed = save(writer, large, 2);
  EXPECT_FALSE(failed.published);
  EXPECT_THAT(failed.reason, AnyOf(HasSubstr("No space left on device"), HasSubstr("bytes are needed")));
  expect_agreed(failed);
  EXPECT_THAT(names_in_folder(), ElementsAre("latest", "step-00000001"));
  expect_stored(older.path, 1, small.total_rows());
  world().barrier();
  EXPECT_TRUE(save(writer, small, 2).published);
}

TEST_F(SmallDiskTest, AFolderThatBecomesReadOnlyFailsTheSaveAndRecovers) {
  RankState state(world().rank(), world().size());
  {
    CheckpointWriter writer(options_, world());
    writer.prepare(state.slices());
    const SaveVerdict older = save(writer, state, 1);
    remount(MS_RDONLY);
    const SaveVerdict failed = save(writer, state, 2);
    EXPECT_FALSE(failed.published);
    EXPECT_THAT(failed.reason, AllOf(HasSubstr("rank 0: "), HasSubstr("Read-only file system")));
    expect_agreed(failed);
    expect_stored(older.path, 1, state.total_rows());
    EXPECT_NO_THROW(mark_bad(older.path, "cannot be marked"));
    remount(0);
    EXPECT_TRUE(save(writer, state, 2).published);
  }
  remount(MS_RDONLY);
  EXPECT_THAT([&] { CheckpointWriter writer(options_, world()); },
              ThrowsMessage<base::Error>(HasSubstr("Read-only file system")));
}

}  // namespace
}  // namespace athanor::checkpoint
