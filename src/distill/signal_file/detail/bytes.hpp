// Values at the end and at the beginning of byte arrays.
#pragma once

#include <bit>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

namespace athanor::distill::signal_file::detail {

static_assert(std::endian::native == std::endian::little, "recordings are written as they lie in memory");

inline void put_bytes(std::vector<std::byte>& bytes, std::span<const std::byte> more) {
  if (!more.empty()) {
    const std::size_t end = bytes.size();
    bytes.resize(end + more.size());
    std::memcpy(bytes.data() + end, more.data(), more.size());
  }
}

template <typename Value>
void put(std::vector<std::byte>& bytes, const Value& value) {
  put_bytes(bytes, std::as_bytes(std::span(&value, 1)));
}

/// Takes a value from the front; there are enough bytes.
template <typename Value>
Value take(std::span<const std::byte>& bytes) {
  Value value;
  std::memcpy(&value, bytes.data(), sizeof(Value));
  bytes = bytes.subspan(sizeof(Value));
  return value;
}

}  // namespace athanor::distill::signal_file::detail
