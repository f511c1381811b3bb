// Saving by several ranks: what is stored, one verdict for all, failures and retries, what stays.
#include "checkpoint/checkpoint_writer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "checkpoint/writer_fixture.hpp"

namespace athanor::checkpoint {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;
using testing::ThrowsMessage;
using tests::CheckpointWriterTest;
using tests::columns;
using tests::expect_stored;
using tests::matrix_name;
using tests::RankState;
using tests::world;

TEST_P(CheckpointWriterTest, StoresWhatEveryRankGave) {
  CheckpointWriter writer(with_mode(GetParam()), world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  EXPECT_FALSE(writer.poll().has_value());
  const SaveVerdict verdict = save(writer, state, 7);
  EXPECT_TRUE(verdict.published) << verdict.reason;
  EXPECT_EQ(verdict.step, 7);
  EXPECT_EQ(verdict.path, options_.checkpoints_dir + "/step-00000007");
  expect_agreed(verdict);
  EXPECT_FALSE(writer.is_saving());
  EXPECT_FALSE(writer.poll().has_value());
  expect_stored(verdict.path, 7, state.total_rows());

  const Manifest manifest = CheckpointReader(verdict.path).manifest();
  EXPECT_EQ(manifest.run_id, options_.run_id);
  EXPECT_EQ(manifest.world_size, world().size());
  EXPECT_EQ(manifest.config, "[run]\nseed=1\n");
  EXPECT_EQ(manifest.created.size(), std::strlen("2026-01-01T00:00:00Z"));
  EXPECT_EQ(static_cast<int>(manifest.files.size()), world().size());
  ASSERT_NE(manifest.find_role("teacher"), nullptr);
  EXPECT_EQ(manifest.find_role("teacher")->state.at("step"), 7);
  EXPECT_EQ(writer.last_figures().bytes, state.rows() * columns * 4 + (world().rank() == 0 ? 32 : 0));
  EXPECT_GT(writer.last_figures().write_s, 0.0);
}

TEST_P(CheckpointWriterTest, AFailingRankGivesAllTheSameVerdictAndARetrySucceeds) {
  CheckpointWriter writer(with_mode(GetParam()), world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  const std::string older = save(writer, state, 1).path;
  std::int64_t step = 2;
  for (const char* point : {"checkpoint.snapshot", "checkpoint.write", "checkpoint.written"}) {
    for (int failing = 0; failing < world().size(); ++failing, ++step) {
      base::set_faults(fmt::format("{}:{}:1:throw", point, failing));
      const SaveVerdict failed = save(writer, state, step);
      EXPECT_FALSE(failed.published);
      EXPECT_EQ(failed.step, step);
      EXPECT_THAT(failed.reason, AllOf(StartsWith(fmt::format("rank {}: ", failing)), HasSubstr(point)));
      expect_agreed(failed);
      EXPECT_THAT(names_in_folder(), Each(testing::Not(StartsWith("."))));
      EXPECT_EQ(resolve_checkpoint(options_.checkpoints_dir),
                step == 2 ? older : options_.checkpoints_dir + "/" + step_folder_name(step - 1));
      world().barrier();
      const SaveVerdict second = save(writer, state, step);
      EXPECT_TRUE(second.published) << second.reason;
      expect_stored(second.path, step, state.total_rows());
    }
  }
}

TEST_P(CheckpointWriterTest, AFailureWhilePublishingLeavesTheOlderOne) {
  CheckpointWriter writer(with_mode(GetParam()), world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  const std::string older = save(writer, state, 1).path;
  for (const char* point :
       {"checkpoint.before_publish", "checkpoint.before_complete", "checkpoint.before_rename"}) {
    base::set_faults(fmt::format("{}:0:1:throw", point));
    const SaveVerdict failed = save(writer, state, 2);
    EXPECT_FALSE(failed.published);
    EXPECT_THAT(failed.reason, AllOf(StartsWith("rank 0: "), HasSubstr(point)));
    expect_agreed(failed);
    EXPECT_THAT(names_in_folder(), ElementsAre("latest", "step-00000001"));
    expect_stored(older, 1, state.total_rows());
    world().barrier();
  }
  EXPECT_TRUE(save(writer, state, 2).published);
}

TEST_P(CheckpointWriterTest, RanksWithoutSlicesWriteNoFile) {
  CheckpointWriter writer(with_mode(GetParam()), world());
  RankState whole(0, 1);  // all of it on rank 0
  whole.fill(3);
  const bool has_state = world().rank() == 0;
  const std::vector<TensorSlice> slices = has_state ? whole.slices() : std::vector<TensorSlice>{};
  writer.prepare(slices);
  writer.save(request(3, slices));
  const SaveVerdict verdict = writer.finish().value();
  ASSERT_TRUE(verdict.published) << verdict.reason;
  expect_stored(verdict.path, 3, whole.total_rows());
  EXPECT_EQ(CheckpointReader(verdict.path).manifest().files.size(), 1U);
  EXPECT_EQ(writer.last_figures().bytes > 0, has_state);
}

TEST_P(CheckpointWriterTest, EmptySlicesAreOrdinary) {
  CheckpointWriter writer(with_mode(GetParam()), world());
  RankState state(world().rank(), world().size());
  state.fill(4);
  std::vector<TensorSlice> slices = state.slices();
  slices.push_back(
      {matrix_name, ElementType::f32,
       SliceExtent::whole_box(parallel::ShardSpec::slice({state.total_rows(), columns}, 0, 0, 0)), nullptr});
  writer.prepare(slices);
  writer.save(request(4, slices));
  const SaveVerdict verdict = writer.finish().value();
  ASSERT_TRUE(verdict.published) << verdict.reason;
  expect_stored(verdict.path, 4, state.total_rows());
}

TEST_P(CheckpointWriterTest, PartsThatDoNotMakeUpATensorAreRefused) {
  CheckpointWriter writer(with_mode(GetParam()), world());
  RankState state(world().rank(), world().size());
  state.fill(5);
  std::vector<TensorSlice> slices = state.slices();
  if (world().rank() == world().size() - 1) {
    slices.front().extent.count -= 1;  // the last element of all is nobody's
  }
  writer.prepare(slices);
  writer.save(request(5, slices));
  const SaveVerdict missing = writer.finish().value();
  EXPECT_FALSE(missing.published);
  EXPECT_THAT(missing.reason, HasSubstr(matrix_name));
  expect_agreed(missing);
  EXPECT_THAT(names_in_folder(), ElementsAre());
  world().barrier();
  if (world().size() > 1) {
    slices = state.slices();
    if (world().rank() == 1) {
      slices.front().type = ElementType::i64;
      slices.front().extent.count = 1;
    }
    writer.save(request(5, slices));
    const SaveVerdict mixed = writer.finish().value();
    EXPECT_THAT(mixed.reason, AllOf(HasSubstr(matrix_name), HasSubstr("i64"), HasSubstr("rank 1")));
  }
}

TEST_P(CheckpointWriterTest, OldOnesGoOnlyAfterANewOneIsThere) {
  WriterOptions options = with_mode(GetParam());
  options.retention.keep = 2;
  options.retention.pinned = {1};
  CheckpointWriter writer(options, world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  save(writer, state, 1);
  save(writer, state, 2);
  writer.note_verified(options.checkpoints_dir + "/../checkpoints/step-00000002/");
  save(writer, state, 3);
  save(writer, state, 4);
  EXPECT_THAT(names_in_folder(),
              ElementsAre("latest", "step-00000001", "step-00000002", "step-00000003", "step-00000004"));
  world().barrier();
  base::set_faults("checkpoint.before_rename:0:1:throw");
  EXPECT_FALSE(save(writer, state, 5).published);
  EXPECT_EQ(names_in_folder().size(), 5U);  // nothing is removed for a save that failed
  world().barrier();
  save(writer, state, 5);
  EXPECT_THAT(names_in_folder(),
              ElementsAre("latest", "step-00000001", "step-00000002", "step-00000004", "step-00000005"));
}

TEST_P(CheckpointWriterTest, WhatWasJustSavedOutlivesLaterStepsOfAnotherTry) {
  WriterOptions options = with_mode(GetParam());
  options.retention.keep = 1;
  CheckpointWriter writer(options, world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  save(writer, state, 50);
  const SaveVerdict verdict = save(writer, state, 20);
  EXPECT_TRUE(verdict.published);
  EXPECT_THAT(names_in_folder(), ElementsAre("latest", "step-00000020", "step-00000050"));
}

TEST_P(CheckpointWriterTest, RanksMayComeAtTheirOwnPace) {
  CheckpointWriter writer(with_mode(GetParam()), world());
  RankState state(world().rank(), world().size());
  writer.prepare(state.slices());
  std::vector<SaveVerdict> verdicts;
  for (std::int64_t step = 1; step <= 3; ++step) {
    const int turn = static_cast<int>(step + world().rank()) % world().size();
    std::this_thread::sleep_for(std::chrono::milliseconds(40 * turn));
    state.fill(step);
    writer.save(request(step, state.slices()));
    while (auto verdict = writer.poll()) {
      verdicts.push_back(*verdict);
    }
  }
  while (auto verdict = writer.finish()) {
    verdicts.push_back(*verdict);
  }
  ASSERT_EQ(verdicts.size(), 3U);
  for (std::int64_t step = 1; step <= 3; ++step) {
    const SaveVerdict& verdict = verdicts[static_cast<std::size_t>(step - 1)];
    EXPECT_EQ(verdict.step, step);
    EXPECT_TRUE(verdict.published) << verdict.reason;
    expect_stored(verdict.path, step, state.total_rows());
  }
}

TEST_P(CheckpointWriterTest, TheDestructorWaitsForASaveInFlight) {
  RankState state(world().rank(), world().size());
  {
    CheckpointWriter writer(with_mode(GetParam()), world());
    writer.prepare(state.slices());
    state.fill(9);
    writer.save(request(9, state.slices()));
  }
  expect_stored(resolve_checkpoint(options_.checkpoints_dir), 9, state.total_rows());
}

TEST_P(CheckpointWriterTest, WorksWithoutMpi) {
  WriterOptions options = with_mode(GetParam());
  options.checkpoints_dir += fmt::format("-{}", world().rank());
  CheckpointWriter writer(options, parallel::Communicator{});
  RankState state(0, 1);
  state.fill(6);
  writer.prepare(state.slices());
  writer.save(request(6, state.slices()));
  const SaveVerdict verdict = writer.finish().value();
  ASSERT_TRUE(verdict.published) << verdict.reason;
  expect_stored(verdict.path, 6, state.total_rows());
}

INSTANTIATE_TEST_SUITE_P(Modes, CheckpointWriterTest, testing::Values(SaveMode::async, SaveMode::sync),
                         [](const auto& info) { return info.param == SaveMode::async ? "Async" : "Sync"; });

TEST_F(CheckpointWriterTest, UnusableFoldersAndOptionsAreRefusedOnAllRanksAlike) {
  if (world().rank() == 0) {
    std::ofstream(root_ / "run") << "a file";
  }
  world().barrier();
  EXPECT_THAT([&] { CheckpointWriter writer(options_, world()); },
              ThrowsMessage<base::Error>(AllOf(HasSubstr("run/checkpoints"), HasSubstr("checkpoint.dir"))));
  try {
    CheckpointWriter writer(options_, world());
  } catch (const base::Error& error) {
    EXPECT_EQ(error.exit_code(), base::ExitCode::cannot_create);
  }
  WriterOptions none = options_;
  none.retention.keep = 0;
  EXPECT_THAT([&] { CheckpointWriter writer(none, world()); },
              ThrowsMessage<base::Error>(HasSubstr("checkpoint.keep=0")));
}

}  // namespace
}  // namespace athanor::checkpoint
