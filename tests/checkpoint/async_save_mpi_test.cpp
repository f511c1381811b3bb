// Saving beside training: the snapshot, back-pressure, memory that does not suffice.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "checkpoint/checkpoint_writer.hpp"
#include "checkpoint/writer_fixture.hpp"

namespace athanor::checkpoint {
namespace {

using tests::columns;
using tests::expect_stored;
using tests::RankState;
using tests::world;

using AsyncSaveTest = tests::CheckpointWriterTest;

TEST_F(AsyncSaveTest, StoresTheSnapshotThoughMemoryChangesAtOnce) {
  CheckpointWriter writer(options_, world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  base::set_faults("checkpoint.write:*:1:sleep=0.2");
  state.fill(1);
  writer.save(request(1, state.slices()));
  EXPECT_TRUE(writer.is_saving());
  EXPECT_FALSE(writer.poll().has_value());
  state.fill(2);
  const SaveVerdict verdict = writer.finish().value();
  expect_stored(verdict.path, 1, state.total_rows());
  EXPECT_GE(writer.last_figures().write_s, 0.2);
  EXPECT_LT(writer.last_figures().snapshot_s, 0.2);
}

TEST_F(AsyncSaveTest, WaitsForTheSaveBeforeAndCountsIt) {
  CheckpointWriter writer(options_, world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  base::set_faults("checkpoint.write:0:1:sleep=0.3");
  for (std::int64_t step = 1; step <= 2; ++step) {
    state.fill(step);
    writer.save(request(step, state.slices()));
  }
  const auto first = writer.poll();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->step, 1);
  EXPECT_LT(writer.last_figures().wait_s, 0.1);
  const auto second = writer.finish();
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->step, 2);
  EXPECT_GE(writer.last_figures().wait_s, 0.2);
  expect_stored(first->path, 1, state.total_rows());
  expect_stored(second->path, 2, state.total_rows());
}

TEST_F(AsyncSaveTest, GrowsTheSnapshotWhenASaveIsLargerThanPrepared) {
  CheckpointWriter writer(options_, world());
  RankState small(world().rank(), world().size());
  writer.prepare(small.slices());
  RankState large(world().rank(), world().size(), 50'000);
  const SaveVerdict verdict = save(writer, large, 1);
  ASSERT_TRUE(verdict.published) << verdict.reason;
  expect_stored(verdict.path, 1, large.total_rows());
}

TEST_F(AsyncSaveTest, WithoutMemoryForSnapshotsAllRanksSaveSynchronously) {
  CheckpointWriter writer(options_, world());
  RankState state(world().rank(), world().size());
  std::vector<TensorSlice> slices = state.slices();
  if (world().rank() == world().size() - 1) {
    slices.front().extent.count = std::int64_t{1} << 50;  // never touched: only its size is asked for
  }
  writer.prepare(slices);
  writer.prepare(state.slices());
  state.fill(1);
  writer.save(request(1, state.slices()));
  EXPECT_FALSE(writer.is_saving());
  EXPECT_EQ(writer.last_figures().snapshot_s, 0.0);
  expect_stored(writer.poll().value().path, 1, state.total_rows());
}

TEST_F(AsyncSaveTest, ABufferRefusedOnOneRankMakesAllSaveSynchronously) {
  constexpr std::int64_t rows = 30'000'000;  // 600 MB, which no rank touches
  CheckpointWriter writer(options_, world());
  RankState state(world().rank(), world().size());
  std::vector<TensorSlice> slices = state.slices();
  if (world().rank() == world().size() - 1) {
    slices.front().extent = SliceExtent::whole_box(parallel::ShardSpec::whole({rows, columns}));
  }
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  if (world().rank() == world().size() - 1) {
    std::int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit tight = before;
    tight.rlim_cur = static_cast<rlim_t>(pages * ::sysconf(_SC_PAGESIZE) + (std::int64_t{200} << 20));
    ASSERT_EQ(::setrlimit(RLIMIT_AS, &tight), 0);
  }
  writer.prepare(slices);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  writer.prepare(state.slices());
  state.fill(1);
  writer.save(request(1, state.slices()));
  EXPECT_FALSE(writer.is_saving());
  expect_stored(writer.poll().value().path, 1, state.total_rows());
}

TEST_F(AsyncSaveTest, SavingBeforePreparingIsOurMistake) {
  CheckpointWriter writer(options_, world());
  EXPECT_THROW(writer.save(SaveRequest{}), base::InternalError);
}

}  // namespace
}  // namespace athanor::checkpoint
