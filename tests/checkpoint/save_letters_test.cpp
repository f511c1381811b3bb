// The arithmetic behind a save: letters, merging reports, memory of each host, the snapshot's layout.
#include "checkpoint/detail/save_letters.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "checkpoint/detail/save_tasks.hpp"
#include "checkpoint/detail/snapshot_buffer.hpp"

namespace athanor::checkpoint {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr std::int64_t giga = 1'000'000'000;

detail::PrepareLetter letter(const std::string& host, std::int64_t snapshot, std::int64_t available) {
  detail::PrepareLetter result;
  result.host = host;
  result.snapshot_bytes = snapshot;
  result.available_bytes = available;
  result.shard_bytes = 7;
  return result;
}

TEST(Preparation, AddsUpTheRanksOfEachHost) {
  const auto enough = detail::decide_preparation(
      {letter("a", 4 * giga, 10 * giga), letter("a", 4 * giga, 10 * giga), letter("b", 9 * giga, 10 * giga)});
  EXPECT_EQ(enough.memory_shortage, "");
  EXPECT_EQ(enough.whole_bytes, 21);
  const auto scarce = detail::decide_preparation(
      {letter("a", 4 * giga, 10 * giga), letter("b", 6 * giga, 10 * giga), letter("b", 4 * giga, 11 * giga)});
  EXPECT_THAT(scarce.memory_shortage, AllOf(HasSubstr("on b"), HasSubstr(std::to_string(10 * giga))));
}

TEST(Preparation, ABufferThatIsThereAlreadyIsNotAskedForAgain) {
  auto again = letter("a", 9 * giga, 1 * giga);
  EXPECT_NE(detail::decide_preparation({again}).memory_shortage, "");
  again.held_bytes = 9 * giga;
  EXPECT_EQ(detail::decide_preparation({again}).memory_shortage, "");
}

TEST(Preparation, LettersRoundTrip) {
  auto mine = letter("node1", 1, 2);
  mine.held_bytes = 3;
  const auto read = detail::prepare_from_text(detail::to_text(mine));
  EXPECT_EQ(read.host, "node1");
  EXPECT_EQ(read.snapshot_bytes, 1);
  EXPECT_EQ(read.available_bytes, 2);
  EXPECT_EQ(read.held_bytes, 3);
  EXPECT_EQ(read.shard_bytes, 7);
  EXPECT_EQ(detail::preparation_from_text(detail::to_text(detail::Preparation{5, "x"})).memory_shortage, "x");
}

detail::RankReport report(int rank, const std::string& failure = "") {
  detail::RankReport result;
  result.rank = rank;
  result.attempt = 1;
  result.step = 10;
  result.failure = failure;
  return result;
}

TEST(RankReport, RoundTripsAndSurvivesAnyMessage) {
  detail::RankReport sent = report(3, "name \xff\xfe is no UTF-8");
  sent.role = StoredRole{"teacher", "teacher", {{"dp", 2}}, {{"loss", 0.1}}};
  sent.file = StoredFile{"rank-00003.h5", 12, 3};
  sent.tensors["w"] = {ElementType::bf16, {2, 3}};
  sent.slices = {{"w",
                  "rank-00003.h5",
                  "w/0",
                  SliceExtent::whole_box(parallel::ShardSpec::whole({2, 3})),
                  {0xffffffffffffffffULL}}};
  const detail::RankReport read = detail::report_from_text(detail::to_text(sent));
  EXPECT_EQ(read.rank, 3);
  EXPECT_EQ(read.step, 10);
  EXPECT_THAT(read.failure, HasSubstr("is no UTF-8"));
  EXPECT_EQ(read.role->state.at("loss"), 0.1);
  EXPECT_EQ(read.file->bytes, 12);
  EXPECT_EQ(read.tensors.at("w").type, ElementType::bf16);
  EXPECT_EQ(read.slices.at(0).extent, sent.slices.at(0).extent);
  EXPECT_EQ(read.slices.at(0).checksums, sent.slices.at(0).checksums);
}

TEST(RankReport, TheFirstFailureIsNamedAndTheOthersCounted) {
  EXPECT_THAT(
      [] {
        detail::merge_reports({}, {report(0), report(1, "disk full"), report(2, "late")});
      },
      ThrowsMessage<base::IoError>(AllOf(HasSubstr("rank 1: disk full"), HasSubstr("1 more"))));
}

TEST(RankReport, RanksMustSaveTheSameStep) {
  auto other = report(1);
  other.step = 11;
  EXPECT_THAT(
      [&] {
        detail::merge_reports({}, {report(0), other});
      },
      ThrowsMessage<base::InternalError>(AllOf(HasSubstr("rank 1"), HasSubstr("11"))));
}

TEST(VerdictLetter, RoundTrips) {
  const detail::VerdictLetter sent{4, {100, false, "", "rank 1: x"}};
  const auto read = detail::verdict_from_text(detail::to_text(sent));
  EXPECT_EQ(read.attempt, 4);
  EXPECT_EQ(read.verdict.step, 100);
  EXPECT_FALSE(read.verdict.published);
  EXPECT_EQ(read.verdict.reason, "rank 1: x");
}

TensorSlice slice_of(const char* name, ElementType type, std::int64_t count, void* data) {
  return {name, type, SliceExtent::whole_box(parallel::ShardSpec::whole({count})), data};
}

TEST(SnapshotBuffer, CopiesNeighboursAndStrangers) {
  std::vector<float> flat(100);
  for (std::size_t i = 0; i < flat.size(); ++i) {
    flat[i] = static_cast<float>(i);
  }
  std::vector<std::int64_t> other = {1, -2, 3};
  detail::SnapshotBuffer buffer;
  const std::vector<TensorSlice> live = {
      slice_of("a", ElementType::f32, 10, flat.data()), slice_of("b", ElementType::f32, 30, flat.data() + 10),
      slice_of("empty", ElementType::f32, 0, nullptr), slice_of("c", ElementType::i64, 3, other.data()),
      slice_of("d", ElementType::f32, 7, flat.data() + 41)};
  const auto copies = buffer.copy(live);
  EXPECT_LE(detail::SnapshotBuffer::needed_bytes(live), buffer.capacity());
  const auto* b = static_cast<const float*>(copies[1].data);
  EXPECT_EQ(b, static_cast<const float*>(copies[0].data) + 10);  // one run
  EXPECT_EQ(copies[2].data, nullptr);
  const std::vector<float> before = flat;
  std::fill(flat.begin(), flat.end(), -1.0F);
  EXPECT_EQ(std::memcmp(copies[0].data, before.data(), 40 * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(copies[3].data, other.data(), 24), 0);
  EXPECT_EQ(std::memcmp(copies[4].data, before.data() + 41, 7 * sizeof(float)), 0);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(copies[3].data) % sizeof(std::int64_t), 0U);
  EXPECT_TRUE(buffer.copy({}).empty());
}

TEST(SnapshotBuffer, ReserveKeepsWhatSuffices) {
  detail::SnapshotBuffer buffer;
  buffer.reserve(1000);
  const std::int64_t capacity = buffer.capacity();
  EXPECT_GE(capacity, 1000);
  buffer.reserve(capacity);
  EXPECT_EQ(buffer.capacity(), capacity);
  buffer.reserve(capacity + 1);
  EXPECT_GT(buffer.capacity(), capacity);
}

TEST(SaveTasks, AskForTwoPercentMoreThanTheEstimate) {
  EXPECT_EQ(detail::with_margin(0), 0);
  EXPECT_EQ(detail::with_margin(100 * giga), 102 * giga);
}

}  // namespace
}  // namespace athanor::checkpoint
