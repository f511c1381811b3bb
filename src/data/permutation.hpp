// Shuffles as arithmetic: any element of a permutation of any size, without building it.
#pragma once

#include <cstdint>

#include "base/philox.hpp"

namespace athanor::data {

/// The permutation of 0 .. size-1 that belongs to (stream, epoch). A Feistel network over Philox on the next
/// power of four, walked until it lands below `size`: constant memory, a few microseconds per element.
class KeyedPermutation {
 public:
  /// `size` >= 1.
  KeyedPermutation(const base::PhiloxStream& stream, std::uint64_t epoch, std::int64_t size);
  /// Where `index` (0 <= index < size) goes.
  std::int64_t operator()(std::int64_t index) const;

 private:
  std::uint64_t encrypt(std::uint64_t value) const;

  base::PhiloxStream stream_;
  std::uint64_t epoch_;
  std::uint64_t size_;
  unsigned half_bits_ = 2;
};

}  // namespace athanor::data
