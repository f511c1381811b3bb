#include "base/hash.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace athanor::base {

std::uint64_t hash_bytes(const void* data, std::size_t size) {
  return XXH3_64bits(data, size);
}

std::uint64_t hash_string(std::string_view text) {
  return hash_bytes(text.data(), text.size());
}

}  // namespace athanor::base
