// The payload of shard files: plain positioned reads and writes of at most 1 GiB a call, checksums on the
// way.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint::detail {

/// An open file. Writing calls throw IoError, reading ones CheckpointError; both name the file and the
/// system's reason.
class PayloadFile {
 public:
  /// A new file. It is removed again unless finish() is reached.
  static PayloadFile create(const std::string& path);
  static PayloadFile open_for_reading(const std::string& path);
  ~PayloadFile();
  PayloadFile(PayloadFile&& other) noexcept;
  PayloadFile& operator=(PayloadFile&&) = delete;
  PayloadFile(const PayloadFile&) = delete;
  PayloadFile& operator=(const PayloadFile&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t bytes() const;

  /// Reserves space for the first `bytes` bytes, so that writing them cannot find the disk full.
  void reserve(std::int64_t bytes) const;
  /// Writes and returns XXH3-64 of the bytes in memory, each piece hashed just before it is written.
  std::uint64_t write(const void* data, std::int64_t bytes, std::int64_t offset) const;
  /// Tells the system to begin storing this range.
  void begin_storing(std::int64_t offset, std::int64_t bytes) const;
  /// fsync and close.
  void finish();

  /// Reads and returns XXH3-64 of what was read.
  std::uint64_t read(void* data, std::int64_t bytes, std::int64_t offset) const;

 private:
  PayloadFile(std::string path, int fd, bool is_unfinished)
      : path_(std::move(path)), fd_(fd), is_unfinished_(is_unfinished) {}

  std::string path_;
  int fd_ = -1;
  bool is_unfinished_ = false;
};

/// Index of the first element that is infinite or not a number; -1 when there is none.
std::int64_t find_non_finite(ElementType type, const void* data, std::int64_t count);

}  // namespace athanor::checkpoint::detail
