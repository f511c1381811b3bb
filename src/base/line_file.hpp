// A text file that grows by whole lines, whatever becomes of its disk.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace athanor::base {

/// Appends lines. One that cannot be written whole (a full disk) is taken back and counted, so that readers
/// never see half a line and the work that it tells of goes on.
class LineFile {
 public:
  LineFile() = default;
  /// Opens or makes the file. Throws CannotCreateError.
  explicit LineFile(const std::string& path);
  ~LineFile();
  LineFile(LineFile&& other) noexcept;
  LineFile& operator=(LineFile&& other) noexcept;

  bool is_open() const { return fd_ >= 0; }
  /// Writes the line and its end at once; returns whether it is in the file.
  bool append(std::string_view line);
  /// Lines that could not be written.
  std::int64_t dropped() const { return dropped_; }

 private:
  std::string path_;
  int fd_ = -1;
  std::int64_t dropped_ = 0;
};

}  // namespace athanor::base
