// Stable 64-bit hashes (XXH3) of names and bytes: the same on every rank, run and machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace athanor::base {

/// XXH3-64 of `size` bytes at `data`.
std::uint64_t hash_bytes(const void* data, std::size_t size);
/// XXH3-64 of a string's bytes.
std::uint64_t hash_string(std::string_view text);

}  // namespace athanor::base
