// The index of a recording as bytes and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "distill/signal_file/format.hpp"

namespace athanor::distill::signal_file::detail {

/// Bytes of an entry of the table before the copy of the block's header.
inline constexpr std::int64_t entry_bytes = 16;

/// The index without its table of blocks.
struct IndexHead {
  RecordingInfo info;
  bool is_complete = false;
  std::int64_t num_blocks = 0;
  std::span<const std::byte> table{};
};

/// Throws DataError naming `path` when it is damaged or of a newer format. `with_table`: the table's checksum
/// is compared, too.
IndexHead decode_index(std::span<const std::byte> bytes, const std::string& path, bool with_table);

std::string encode_index(const RecordingInfo& info, bool is_complete, std::int64_t num_blocks,
                         std::span<const std::byte> table);

}  // namespace athanor::distill::signal_file::detail
