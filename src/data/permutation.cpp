#include "data/permutation.hpp"

#include "base/error.hpp"

namespace athanor::data {

namespace {
// Four rounds are a pseudo-random permutation of large domains; eight keep small ones well mixed.
constexpr std::uint64_t rounds = 8;
}  // namespace

KeyedPermutation::KeyedPermutation(const base::PhiloxStream& stream, std::uint64_t epoch, std::int64_t size)
    : stream_(stream), epoch_(epoch), size_(static_cast<std::uint64_t>(size)) {
  ATHANOR_CHECK(size >= 1, "a permutation of {} elements", size);
  while ((std::uint64_t{1} << (2 * half_bits_)) < size_) {
    ++half_bits_;
  }
}

std::uint64_t KeyedPermutation::encrypt(std::uint64_t value) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t left = value >> half_bits_;
  std::uint64_t right = value & mask;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const std::uint64_t mixed = left ^ (stream_.bits(epoch_, (round << 56) | right) & mask);
    left = right;
    right = mixed;
  }
  return (left << half_bits_) | right;
}

std::int64_t KeyedPermutation::operator()(std::int64_t index) const {
  std::uint64_t value = static_cast<std::uint64_t>(index);
  ATHANOR_CHECK(value < size_, "element {} of a permutation of {}", index, size_);
  do {
    value = encrypt(value);
  } while (value >= size_);
  return static_cast<std::int64_t>(value);
}

}  // namespace athanor::data
