// kill -9 in the midst of a save: whatever the moment, the newest whole checkpoint loads, and the next job
// goes on. Each victim is this program again (a "threadsafe" death test), so that it has threads of its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/fault_point.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "checkpoint/checkpoint_writer.hpp"
#include "checkpoint/run_lock.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::IsEmpty;
using testing::SizeIs;

constexpr const char* folder_variable = "ATHANOR_KILLED_SAVE_TEST";
constexpr const char* tensor_name = "teacher/weight/w";
constexpr std::int64_t numel = 50'000;

class KilledSaveTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    const char* inherited = std::getenv(folder_variable);  // in the victim
    is_victim_ = inherited != nullptr;
    if (is_victim_) {
      run_ = inherited;
    } else {
      std::string pattern = (fs::temp_directory_path() / "killed_XXXXXX").string();
      ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
      run_ = pattern;
      ::setenv(folder_variable, run_.c_str(), 1);
    }
    dir_ = run_ + "/checkpoints";
  }
  void TearDown() override {
    base::set_faults("");
    if (!is_victim_) {
      ::unsetenv(folder_variable);
      fs::remove_all(run_);
    }
  }

  // One job: the lock, then saves of steps [first, last].
  void run_job(std::int64_t first, std::int64_t last, SaveMode mode, std::int64_t keep) const {
    const RunLock lock(run_);
    remove_leftovers(dir_);
    std::vector<float> values(numel);
    const std::vector<TensorSlice> slices = {{tensor_name, ElementType::f32,
                                              SliceExtent::whole_box(parallel::ShardSpec::whole({numel})),
                                              values.data()}};
    WriterOptions options;
    options.checkpoints_dir = dir_;
    options.run_id = "00000000000000bb";
    options.mode = mode;
    options.retention.keep = keep;
    CheckpointWriter writer(options, parallel::Communicator{});
    writer.prepare(slices);
    for (std::int64_t step = first; step <= last; ++step) {
      std::iota(values.begin(), values.end(), static_cast<float>(step));
      SaveRequest request;
      request.step = step;
      request.slices = slices;
      writer.save(std::move(request));
      while (const auto verdict = writer.poll()) {
        ASSERT_TRUE(verdict->published) << verdict->reason;
      }
    }
    while (const auto verdict = writer.finish()) {
      ASSERT_TRUE(verdict->published) << verdict->reason;
    }
  }

  std::string hint() const {
    std::ifstream file(dir_ + "/latest");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // The newest whole checkpoint holds what belongs to its step; returns the step.
  std::int64_t check_newest() const {
    const CheckpointReader reader(resolve_checkpoint(run_));
    EXPECT_THAT(reader.verify(), IsEmpty());
    std::vector<float> values(numel);
    reader.read({{tensor_name, ElementType::f32, SliceExtent::whole_box(parallel::ShardSpec::whole({numel})),
                  values.data()}});
    const std::int64_t step = reader.manifest().step;
    EXPECT_EQ(values.front(), static_cast<float>(step));
    EXPECT_EQ(values.back(), static_cast<float>(step + numel - 1));
    return step;
  }

  std::string run_;
  std::string dir_;
  bool is_victim_ = false;
};

TEST_P(KilledSaveTest, LeavesTheLastPublishedOne) {
  const std::string point = GetParam();
  EXPECT_EXIT(
      {
        base::set_faults(point + ":0:2:kill");
        run_job(1, 3, SaveMode::async, 5);
      },
      testing::KilledBySignal(SIGKILL), "");
  const bool is_published = point == "checkpoint.before_latest";
  EXPECT_EQ(check_newest(), is_published ? 2 : 1);
  EXPECT_EQ(hint(), "step-00000001\n");
  const auto leftovers = remove_leftovers(dir_);
  EXPECT_THAT(leftovers, SizeIs(point == "checkpoint.snapshot" || is_published ? 0 : 1));
  run_job(3, 3, SaveMode::sync, 5);
  EXPECT_EQ(check_newest(), 3);
  EXPECT_EQ(hint(), "step-00000003\n");
}

INSTANTIATE_TEST_SUITE_P(Points, KilledSaveTest,
                         testing::Values("checkpoint.snapshot", "checkpoint.write", "checkpoint.written",
                                         "checkpoint.before_publish", "checkpoint.before_complete",
                                         "checkpoint.before_rename", "checkpoint.before_latest"),
                         [](const auto& info) {
                           return std::string(info.param).substr(std::string("checkpoint.").size());
                         });

TEST_F(KilledSaveTest, DuringRotationEnoughStay) {
  EXPECT_EXIT(
      {
        base::set_faults("checkpoint.during_rotation:0:1:kill");
        run_job(1, 5, SaveMode::sync, 2);
      },
      testing::KilledBySignal(SIGKILL), "");
  EXPECT_EQ(check_newest(), 3);
  EXPECT_THAT(list_checkpoints(dir_), SizeIs(2));
  EXPECT_THAT(remove_leftovers(dir_), testing::ElementsAre(".trash-step-00000001"));
}

TEST_F(KilledSaveTest, AtAnyMomentNoPublishedOneIsLost) {
  constexpr int kills = 6;
  std::int64_t newest = 0;
  for (int kill = 0; kill < kills; ++kill) {
    const auto life = std::chrono::milliseconds(60 + 37 * kill);
    EXPECT_EXIT(
        {
          std::thread([life] {
            std::this_thread::sleep_for(life);
            ::kill(::getpid(), SIGKILL);
          }).detach();
          const auto before = list_checkpoints(dir_);
          run_job(before.empty() ? 1 : before.front().step + 1, 1'000'000, SaveMode::async, 3);
        },
        testing::KilledBySignal(SIGKILL), "");
    const auto entries = list_checkpoints(dir_);
    for (const CatalogEntry& entry : entries) {
      EXPECT_EQ(entry.status, CheckpointStatus::whole) << entry.path << ": " << entry.reason;
    }
    if (!entries.empty()) {
      EXPECT_GE(check_newest(), newest);
      newest = entries.front().step;
      EXPECT_GE(entries.size(), static_cast<std::size_t>(std::min<std::int64_t>(newest, 3)));
    }
  }
  EXPECT_GT(newest, 0);
}

}  // namespace
}  // namespace athanor::checkpoint
