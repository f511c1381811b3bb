// The memory that holds a rank's state while it is written beside training.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint::detail {

/// One buffer, reused by every save. Slices that lie next to each other in memory are copied in one piece.
class SnapshotBuffer {
 public:
  /// Bytes that copies of these slices take.
  static std::int64_t needed_bytes(const std::vector<TensorSlice>& slices);

  /// Makes room for at least `bytes` and touches it, so that the first save does not pay for page faults.
  void reserve(std::int64_t bytes);
  std::int64_t capacity() const { return capacity_; }

  /// Copies all slices; the result has their data here. What an earlier call returned is overwritten.
  std::vector<TensorSlice> copy(const std::vector<TensorSlice>& slices);

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::int64_t capacity_ = 0;
};

}  // namespace athanor::checkpoint::detail
