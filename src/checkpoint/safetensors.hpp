// The safetensors container: an 8-byte little-endian header length, a JSON header, then raw tensors.
// Format: https://github.com/huggingface/safetensors (format section of its README).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace athanor::checkpoint {

/// One tensor in the file.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;  ///< "F64", "F32", "BF16", "F16", "I64", ...
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;  ///< byte offsets relative to the data section
  std::int64_t end = 0;
};

/// Header of a file, written before or read from it.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in file order
  std::map<std::string, std::string> metadata;
  std::int64_t data_begin = 0;  ///< absolute offset of the data section

  /// nullptr when absent.
  const SafetensorsEntry* find(const std::string& name) const;
};

/// Bytes of one element of a dtype; throws DataError for unknown ones.
std::int64_t safetensors_element_bytes(const std::string& dtype);

/// Fills in offsets of the entries in order (from dtype and shape) and returns the header's bytes (length
/// prefix included, padded with spaces to 8 bytes); sets data_begin.
std::string layout_safetensors(SafetensorsHeader& header);

/// Reads and checks a file's header: sizes, overlaps, gaps and the file's length. Throws MissingInputError,
/// DataError.
SafetensorsHeader read_safetensors_header(const std::string& path);

}  // namespace athanor::checkpoint
