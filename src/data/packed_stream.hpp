// The token files of one domain, document after document, as one stream of ids.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/token_file.hpp"

namespace athanor::data {

/// Files end to end in list order; move-only, thread-safe. A file boundary is a document boundary.
class PackedStream {
 public:
  explicit PackedStream(std::vector<TokenFile> files);

  const std::vector<TokenFile>& files() const { return files_; }
  std::int64_t num_tokens() const { return starts_.back(); }
  /// Copies the ids [first, first + out.size()) of the stream.
  void read(std::int64_t first, std::span<std::int32_t> out) const;
  /// Offsets from `first`, ascending and each once, of the documents that start inside (first, first +
  /// count).
  std::vector<std::int64_t> document_starts(std::int64_t first, std::int64_t count) const;
  /// Largest id of all files; -1 when there is none.
  std::int64_t max_token_id() const;

 private:
  // Calls body(file, first id within it, ids, offset in the range) for each file that the range touches.
  template <typename Body>
  void for_each_file(std::int64_t first, std::int64_t count, Body body) const;

  std::vector<TokenFile> files_;
  std::vector<std::int64_t> starts_{0};  // stream offset of each file, and the end
};

}  // namespace athanor::data
