#include "checkpoint/detail/payload_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/error.hpp"
#include "checkpoint/detail/durable_files.hpp"

namespace athanor::checkpoint::detail {
namespace {

// Hashing and writing go piece by piece, so that the second finds the bytes in the cache. Reading does not:
// large calls keep the disk busy whatever the system's read-ahead is.
constexpr std::int64_t piece_bytes = 512 << 10;
constexpr std::int64_t call_bytes = std::int64_t{1} << 30;

[[noreturn]] void fail_writing(const std::string& path, int error) {
  throw base::IoError("cannot write {} ({}) check the storage and its free space", path, reason_of(error));
}

[[noreturn]] void fail_reading(const std::string& path, const std::string& reason) {
  throw base::CheckpointError("cannot read {} ({}) use an older checkpoint", path, reason);
}

class StreamHash {
 public:
  StreamHash() { XXH3_64bits_reset(&state_); }
  void add(const void* data, std::int64_t bytes) {
    XXH3_64bits_update(&state_, data, static_cast<std::size_t>(bytes));
  }
  std::uint64_t value() const { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

// True when an element has all exponent bits set. The inner loop has a fixed length: it becomes vector code.
template <typename Bits>
std::int64_t find_exponent(const Bits* data, std::int64_t count, Bits mask) {
  constexpr std::int64_t stretch = 256;
  std::int64_t begin = 0;
  for (; begin + stretch <= count; begin += stretch) {
    Bits found = 0;
    for (std::int64_t i = 0; i < stretch; ++i) {
      found |= static_cast<Bits>((data[begin + i] & mask) == mask);
    }
    if (found != 0) {
      break;
    }
  }
  for (; begin < count; ++begin) {
    if ((data[begin] & mask) == mask) {
      return begin;
    }
  }
  return -1;
}

}  // namespace

PayloadFile PayloadFile::create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) {
    fail_writing(path, errno);
  }
  return {path, fd, true};
}

PayloadFile PayloadFile::open_for_reading(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    fail_reading(path, reason_of(errno));
  }
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  return {path, fd, false};
}

PayloadFile::~PayloadFile() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
  if (is_unfinished_) {
    ::unlink(path_.c_str());
  }
}

PayloadFile::PayloadFile(PayloadFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      is_unfinished_(std::exchange(other.is_unfinished_, false)) {}

std::int64_t PayloadFile::bytes() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) {
    fail_reading(path_, reason_of(errno));
  }
  return status.st_size;
}

void PayloadFile::reserve(std::int64_t bytes) const {
  int error = EINTR;
  while (error == EINTR) {
    error = ::posix_fallocate(fd_, 0, bytes);
  }
  if (error != 0) {
    fail_writing(path_, error);
  }
}

std::uint64_t PayloadFile::write(const void* data, std::int64_t bytes, std::int64_t offset) const {
  const auto* from = static_cast<const std::byte*>(data);
  StreamHash hash;
  for (std::int64_t done = 0; done < bytes;) {
    const std::int64_t piece = std::min(piece_bytes, bytes - done);
    hash.add(from + done, piece);
    for (std::int64_t at = 0; at < piece;) {
      const ssize_t written =
          ::pwrite(fd_, from + done + at, static_cast<std::size_t>(piece - at), offset + done + at);
      if (written < 0 && errno != EINTR) {
        fail_writing(path_, errno);
      }
      at += std::max<ssize_t>(written, 0);
    }
    done += piece;
  }
  return hash.value();
}

void PayloadFile::begin_storing(std::int64_t offset, std::int64_t bytes) const {
  // A hint: not every file system has it, and fsync follows in any case.
  static_cast<void>(::sync_file_range(fd_, offset, bytes, SYNC_FILE_RANGE_WRITE));
}

void PayloadFile::finish() {
  if (::fsync(fd_) != 0) {
    fail_writing(path_, errno);
  }
  if (::close(std::exchange(fd_, -1)) != 0) {
    fail_writing(path_, errno);
  }
  is_unfinished_ = false;
}

std::uint64_t PayloadFile::read(void* data, std::int64_t bytes, std::int64_t offset) const {
  auto* to = static_cast<std::byte*>(data);
  for (std::int64_t done = 0; done < bytes;) {
    const std::int64_t wanted = std::min(call_bytes, bytes - done);
    const ssize_t count = ::pread(fd_, to + done, static_cast<std::size_t>(wanted), offset + done);
    if (count == 0) {
      fail_reading(path_, "it ends too early");
    }
    if (count < 0 && errno != EINTR) {
      fail_reading(path_, reason_of(errno));
    }
    done += std::max<ssize_t>(count, 0);
  }
  return XXH3_64bits(data, static_cast<std::size_t>(bytes));
}

std::int64_t find_non_finite(ElementType type, const void* data, std::int64_t count) {
  switch (type) {
    case ElementType::f64:
      return find_exponent(static_cast<const std::uint64_t*>(data), count,
                           std::uint64_t{0x7ff0'0000'0000'0000});
    case ElementType::f32:
      return find_exponent(static_cast<const std::uint32_t*>(data), count, std::uint32_t{0x7f80'0000});
    case ElementType::bf16:
      return find_exponent(static_cast<const std::uint16_t*>(data), count, std::uint16_t{0x7f80});
    case ElementType::f16:
      return find_exponent(static_cast<const std::uint16_t*>(data), count, std::uint16_t{0x7c00});
    case ElementType::i64:
      return -1;
  }
  return -1;
}

}  // namespace athanor::checkpoint::detail
