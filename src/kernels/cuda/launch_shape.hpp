// How rows, columns and elements are divided among the blocks and threads of a launch. Plain arithmetic,
// without CUDA, so that it is tested where there is no device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/bodies/part.hpp"

namespace athanor::kernels::cuda {

/// Blocks that a launch may have in its first dimension; we use no other.
inline constexpr std::int64_t most_blocks_x = 2147483647;
/// Of our launches over rows and elements.
inline constexpr int block_threads = 256;
/// Shared memory of a block without an opt-in.
inline constexpr std::size_t most_shared_bytes = 48 * 1024;
/// What a block's reductions take of it: as many bytes for each thread as a value that is reduced may have.
inline constexpr std::size_t exchange_bytes = 32 * block_threads;

/// Items (elements, rows) spread over blocks of `per_block` places. Place p of block b takes item b *
/// per_block
/// + p and every stride()-th after it, so each item has one place whatever the number of blocks.
struct LaunchShape {
  std::int64_t items = 0;
  std::int64_t per_block = 1;
  std::int64_t blocks = 0;  ///< 0: there is nothing to launch

  static constexpr LaunchShape over(std::int64_t items, std::int64_t per_block,
                                    std::int64_t most_blocks = most_blocks_x) {
    const std::int64_t wanted = bodies::ceil_divide(items, per_block);
    return {items, per_block, wanted < most_blocks ? wanted : most_blocks};
  }
  ATHANOR_BODY std::int64_t first(std::int64_t block, std::int64_t place) const {
    return block * per_block + place;
  }
  ATHANOR_BODY std::int64_t stride() const { return blocks * per_block; }
};

/// A launch of teams of `lanes` threads with scratch memory of their own.
struct RowLaunch {
  LaunchShape shape;
  std::size_t scratch_bytes = 0;  ///< of one team, a multiple of 16

  constexpr std::size_t shared_bytes() const {
    return scratch_bytes * static_cast<std::size_t>(shape.per_block);
  }
  constexpr bool fits() const { return shared_bytes() + exchange_bytes <= most_shared_bytes; }

  /// As many teams a block as its threads and the shared memory allow, one at least; see fits().
  static constexpr RowLaunch of(std::int64_t rows, int lanes, std::size_t scratch_bytes,
                                std::int64_t most_blocks = most_blocks_x) {
    const std::size_t bytes = (scratch_bytes + 15) / 16 * 16;
    std::int64_t teams = block_threads / lanes;
    while (teams > 1 && bytes * static_cast<std::size_t>(teams) + exchange_bytes > most_shared_bytes) {
      teams /= 2;
    }
    return {LaunchShape::over(rows, teams, most_blocks), bytes};
  }
};

/// Bytes that rows of `row_bytes` at these addresses can be copied in at a time: 16, 8, 4, 2 or 1.
inline int copy_unit(std::size_t row_bytes, const void* from, const void* to) {
  const std::size_t bits =
      row_bytes | reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  int unit = 16;
  while (unit > 1 && bits % static_cast<std::size_t>(unit) != 0) {
    unit /= 2;
  }
  return unit;
}

}  // namespace athanor::kernels::cuda
