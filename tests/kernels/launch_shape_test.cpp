// Grids of the CUDA launches: every row and element has exactly one place, limits are kept, nothing is
// launched for nothing.
#include "kernels/cuda/launch_shape.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "kernels/bodies/columns.hpp"

namespace athanor::kernels::cuda {
namespace {

/// How often each item is visited by the kernels' loop.
std::vector<int> visits(const LaunchShape& shape) {
  std::vector<int> count(static_cast<std::size_t>(shape.items));
  for (std::int64_t block = 0; block < shape.blocks; ++block) {
    for (std::int64_t place = 0; place < shape.per_block; ++place) {
      for (std::int64_t i = shape.first(block, place); i < shape.items; i += shape.stride()) {
        ++count[static_cast<std::size_t>(i)];
      }
    }
  }
  return count;
}

TEST(LaunchShape, EveryItemHasOnePlace) {
  for (const std::int64_t items : {0, 1, 7, 8, 9, 255, 256, 257, 1000, 4097}) {
    for (const std::int64_t per_block : {1, 8, 256}) {
      for (const std::int64_t most_blocks : {std::int64_t{1}, std::int64_t{3}, most_blocks_x}) {
        const LaunchShape shape = LaunchShape::over(items, per_block, most_blocks);
        EXPECT_EQ(visits(shape), std::vector<int>(static_cast<std::size_t>(items), 1))
            << items << " by " << per_block << " in at most " << most_blocks;
        EXPECT_LE(shape.blocks, most_blocks);
        EXPECT_EQ(shape.blocks == 0, items == 0);
      }
    }
  }
}

TEST(LaunchShape, NoBlockIsIdleBelowTheLimit) {
  EXPECT_EQ(LaunchShape::over(256, 256).blocks, 1);
  EXPECT_EQ(LaunchShape::over(257, 256).blocks, 2);
}

TEST(LaunchShape, KeepsToTheLargestGrid) {
  constexpr std::int64_t huge = std::int64_t{1} << 50;
  const LaunchShape shape = LaunchShape::over(huge, 256);
  EXPECT_EQ(shape.blocks, 2147483647);
  // The last place's next item is still a number.
  EXPECT_GT(std::numeric_limits<std::int64_t>::max() - huge, shape.stride());
  EXPECT_LT(shape.first(shape.blocks - 1, 255), huge);
}

TEST(RowLaunch, FillsBlocksWithTeams) {
  const RowLaunch warps = RowLaunch::of(100, 32, 0);
  EXPECT_EQ(warps.shape.per_block, 8);
  EXPECT_EQ(warps.shape.blocks, 13);
  EXPECT_EQ(warps.shared_bytes(), 0u);
  const RowLaunch blocks = RowLaunch::of(100, 256, 8);
  EXPECT_EQ(blocks.shape.per_block, 1);
  EXPECT_EQ(blocks.shape.blocks, 100);
  EXPECT_EQ(blocks.shared_bytes(), 16u);  // aligned for what follows it
}

TEST(RowLaunch, HasFewerTeamsWhereTheirMemoryIsShort) {
  const RowLaunch launch = RowLaunch::of(100, 32, 16000);
  EXPECT_EQ(launch.shape.per_block, 2);
  EXPECT_TRUE(launch.fits());
  EXPECT_FALSE(RowLaunch::of(100, 32, 48 * 1024).fits());
  EXPECT_EQ(visits(launch.shape), std::vector<int>(100, 1));
}

TEST(CopyUnit, IsWhatRowsAndAddressesAreMultiplesOf) {
  alignas(16) char memory[64];
  EXPECT_EQ(copy_unit(32, memory, memory + 16), 16);
  EXPECT_EQ(copy_unit(40, memory, memory), 8);
  EXPECT_EQ(copy_unit(32, memory + 4, memory), 4);
  EXPECT_EQ(copy_unit(6, memory, memory), 2);
  EXPECT_EQ(copy_unit(32, memory, memory + 3), 1);
}

TEST(Part, RangesFollowOneAnother) {
  for (const std::int64_t n : {0, 1, 63, 64, 65, 1000}) {
    for (const std::int64_t size : {1, 7, 64, 2000}) {
      std::int64_t next = 0;
      for (std::int64_t part = 0; part < bodies::ceil_divide(n, size); ++part) {
        const bodies::Part range = bodies::Part::of(n, part, size);
        EXPECT_EQ(range.first, next);
        EXPECT_GT(range.count, 0);
        next += range.count;
      }
      EXPECT_EQ(next, n);
      EXPECT_EQ(bodies::Part::of(n, n + 5, size).count, 0);
    }
  }
}

TEST(ColumnShape, HasNoMoreParts) {
  for (const std::int64_t rows : {0, 1, 63, 64, 65, 129, 100000}) {
    const auto shape = bodies::ColumnShape::first_step(rows, 5);
    EXPECT_LE(shape.parts(), bodies::column_parts);
    EXPECT_EQ(shape.second_step().parts(), rows == 0 ? 0 : 1);
  }
}

}  // namespace
}  // namespace athanor::kernels::cuda
