// Constants of the token index that reader and writer share.
#pragma once

#include <cstdint>
#include <string_view>

namespace athanor::data::detail {

inline constexpr std::string_view index_magic{"MMIDIDX\0\0", 9};
inline constexpr std::uint64_t index_version = 1;
/// Magic, version, id type, number of sequences, number of document entries.
inline constexpr std::int64_t index_header_bytes = 9 + 8 + 1 + 8 + 8;

}  // namespace athanor::data::detail
