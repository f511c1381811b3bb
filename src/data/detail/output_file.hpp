// A file that appears under its name only when it is whole.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace athanor::data::detail {

/// Writes PATH.partial through a buffer; finish() flushes it to disk and renames it to PATH. Without finish()
/// the partial file is removed. Not copyable, not movable.
class OutputFile {
 public:
  /// Creates the folder when needed. Throws CannotCreateError.
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Throws IoError.
  void write(const void* data, std::size_t size);
  /// Throws IoError. Call once.
  void finish();

 private:
  void flush_buffer();
  [[noreturn]] void fail(const char* what) const;

  std::string path_;
  std::string partial_path_;
  int descriptor_ = -1;
  bool finished_ = false;
  std::vector<char> buffer_;
};

}  // namespace athanor::data::detail
