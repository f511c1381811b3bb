// Streams, events, memory and staging where there is no CUDA: work is done on return, and callers need no
// branches.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "device/availability.hpp"
#include "device/cublas_handle.hpp"
#include "device/host_staging.hpp"
#include "device/memory.hpp"
#include "device/stream.hpp"

namespace athanor::device {
namespace {

class WithoutCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (compiled_with_cuda()) {
      GTEST_SKIP() << "this is a build with CUDA";
    }
  }
};

std::vector<std::byte> pattern(std::size_t bytes) {
  std::vector<std::byte> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    values[i] = static_cast<std::byte>(i * 131 + (i >> 8));
  }
  return values;
}

TEST_F(WithoutCuda, StreamsAreIdleAndEventsDone) {
  Stream stream(StreamPriority::high);
  EXPECT_EQ(stream.handle(), nullptr);
  Event start(EventTiming::on);
  Event end(EventTiming::on);
  EXPECT_TRUE(end.done());
  start.record(stream);
  end.record(stream);
  stream.wait_for(end);
  stream.wait_for(Stream());
  EXPECT_TRUE(stream.idle());
  EXPECT_TRUE(end.done());
  EXPECT_GE(end.milliseconds_since(start), 0.0);
  const Stream moved = std::move(stream);
  moved.synchronize();
  const StreamScope scope(moved);
  EXPECT_EQ(current_stream(), nullptr);
}

TEST_F(WithoutCuda, BuffersAreAlignedZeroedAndMoveOnly) {
  PinnedBuffer buffer(5000);
  ASSERT_NE(buffer.data(), nullptr);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % PinnedBuffer::alignment, 0U);
  EXPECT_TRUE(std::all_of(buffer.bytes().begin(), buffer.bytes().end(),
                          [](std::byte b) { return b == std::byte{0}; }));
  const std::byte* data = buffer.data();
  const PinnedBuffer moved = std::move(buffer);
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(moved.size(), 5000U);
  EXPECT_EQ(PinnedBuffer(0).data(), nullptr);
  EXPECT_EQ(DeviceBuffer(0).data(), nullptr);
}

TEST_F(WithoutCuda, CublasAndThePoolSayWhatTheyAre) {
  EXPECT_THROW(CublasHandle{Stream()}, base::DeviceError);
  EXPECT_EQ(pool_use().allocated_bytes, 0);
}

TEST(MemoryPool, ItsShareIsAFraction) {
  EXPECT_THROW(configure_memory_pool({.fraction = 0.0}), base::ConfigError);
  EXPECT_THROW(configure_memory_pool({.fraction = 92.0}), base::ConfigError);
}

class Staging : public WithoutCuda, public testing::WithParamInterface<std::pair<std::size_t, int>> {};

TEST_P(Staging, CarriesEveryByteBothWaysInOrder) {
  const auto [bytes, slots] = GetParam();
  const std::vector<std::byte> from = pattern(bytes);
  HostStaging staging({.slot_bytes = 1000, .slots = slots});
  const Stream stream;
  std::vector<std::byte> seen;
  staging.to_host(from.data(), bytes, stream, [&](std::size_t offset, std::span<const std::byte> piece) {
    EXPECT_EQ(offset, seen.size());
    EXPECT_LE(piece.size(), 1000U);
    seen.insert(seen.end(), piece.begin(), piece.end());
  });
  EXPECT_EQ(seen, from);
  std::vector<std::byte> to(bytes);
  std::size_t next = 0;
  staging.to_device(to.data(), bytes, stream, [&](std::size_t offset, std::span<std::byte> piece) {
    EXPECT_EQ(offset, next);
    next += piece.size();
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(offset), piece.size(), piece.begin());
  });
  EXPECT_EQ(next, bytes);
  EXPECT_EQ(to, from);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Staging,
                         testing::Values(std::pair(std::size_t{0}, 2), std::pair(std::size_t{1}, 2),
                                         std::pair(std::size_t{1000}, 2), std::pair(std::size_t{1001}, 2),
                                         std::pair(std::size_t{5432}, 2), std::pair(std::size_t{5432}, 3)));

TEST_F(WithoutCuda, StagingRefusesASingleSlot) {
  EXPECT_THROW(HostStaging({.slot_bytes = 8, .slots = 1}), base::ConfigError);
  EXPECT_THROW(HostStaging({.slot_bytes = 0, .slots = 2}), base::ConfigError);
}

TEST_F(WithoutCuda, StagingGoesOnAfterAConsumerFailed) {
  HostStaging staging({.slot_bytes = 10, .slots = 2});
  const std::vector<std::byte> from = pattern(35);
  const Stream stream;
  EXPECT_THROW(
      staging.to_host(from.data(), from.size(), stream,
                      [](std::size_t, std::span<const std::byte>) { throw base::IoError("disk full"); }),
      base::IoError);
  std::size_t seen = 0;
  staging.to_host(from.data(), from.size(), stream,
                  [&](std::size_t, std::span<const std::byte> piece) { seen += piece.size(); });
  EXPECT_EQ(seen, from.size());
}

}  // namespace
}  // namespace athanor::device
