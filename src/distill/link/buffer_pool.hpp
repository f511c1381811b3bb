// Packet buffers used again: the sizes of a step recur in the next.
#pragma once

#include <cstddef>
#include <vector>

#include "parallel/point_to_point.hpp"

namespace athanor::distill {

/// Buffers that were given back, taken again by the next of a size that fits.
class BufferPool {
 public:
  /// A buffer of `size` bytes, not initialised.
  parallel::ByteBuffer take(std::size_t size);
  /// Keeps a buffer for later.
  void give_back(parallel::ByteBuffer buffer);
  /// Frees what is not in use.
  void clear() { free_.clear(); }

 private:
  std::vector<parallel::ByteBuffer> free_;
};

}  // namespace athanor::distill
