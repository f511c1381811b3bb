// A whole file as read-only memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace athanor::base {

/// Memory-maps a file for reading; move-only. An empty file maps to an empty span.
class MappedFile {
 public:
  /// Throws MissingInputError when the file does not exist, IoError when it cannot be opened or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Asks for bytes [first, first + count) to be read ahead.
  void prefetch(std::int64_t first, std::int64_t count) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace athanor::base
