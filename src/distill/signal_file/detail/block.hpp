// The header of a block and the head of a data file, as bytes and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "distill/signal_file/format.hpp"

namespace athanor::distill::signal_file::detail {

/// Bytes before the first block of a data file.
inline constexpr std::int64_t file_head_bytes = 32;

/// The head of data file `number` of a recording.
std::vector<std::byte> encode_file_head(std::uint64_t recording, std::uint32_t number);
/// Throws DataError naming `path` when the bytes are not the head of that file of that recording.
void check_file_head(std::span<const std::byte> file, std::uint64_t recording, std::uint32_t number,
                     const std::string& path);

/// Appends a header to `bytes`.
void encode_header(const BlockHeader& header, std::vector<std::byte>& bytes);

/// Reads the header at the beginning of `bytes`, which may go on behind it. Throws DataError naming `where`
/// when it is cut off, damaged, or contradicts itself or the fields of the recording.
BlockHeader decode_header(std::span<const std::byte> bytes, const std::vector<FieldInfo>& fields,
                          const std::string& where);

/// Bytes that a part takes in a record or step part, without padding.
std::int64_t part_bytes(const BlockPart& part, const std::vector<FieldInfo>& fields);

/// `bytes` rounded up to a multiple of 8.
inline std::int64_t aligned(std::int64_t bytes) {
  return (bytes + 7) / 8 * 8;
}

}  // namespace athanor::distill::signal_file::detail
