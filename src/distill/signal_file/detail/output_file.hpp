// Files of a recording while they are written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace athanor::distill::signal_file::detail {

/// A file that grows at its end. All calls throw IoError naming it, with the system's reason.
class OutputFile {
 public:
  /// Opens or makes it; writing goes on at its end.
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void append(std::span<const std::byte> bytes);
  /// Until the bytes would survive a power loss.
  void sync();
  std::int64_t size() const { return size_; }

 private:
  std::string path_;
  int fd_ = -1;
  std::int64_t size_ = 0;
};

/// Makes or replaces a file, durably. Throws IoError.
void write_whole_file(const std::string& path, std::string_view bytes);
/// rename(2), and fsync of the folder. Throws IoError.
void rename_durably(const std::string& from, const std::string& to);
/// Cuts a file to `size` bytes. Throws IoError.
void truncate_file(const std::string& path, std::int64_t size);

}  // namespace athanor::distill::signal_file::detail
