#include "base/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace athanor::base {

namespace {

// Closes the descriptor at the end of the constructor: the mapping outlives it.
struct FileDescriptor {
  int value = -1;
  ~FileDescriptor() {
    if (value >= 0) {
      ::close(value);
    }
  }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.value < 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      throw MissingInputError("{} does not exist ({}) check the path", path, std::strerror(errno));
    }
    throw IoError("{} cannot be opened ({}) check its permissions", path, std::strerror(errno));
  }
  struct stat status {};
  if (::fstat(file.value, &status) != 0) {
    throw IoError("{} cannot be examined ({}) check the file system", path, std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    throw DataError("{} is not a regular file (it is mapped into memory) give a plain file", path);
  }
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) {
    return;
  }
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.value, 0);
  if (mapped == MAP_FAILED) {
    throw IoError("{} cannot be mapped into memory ({}) check limits on address space", path,
                  std::strerror(errno));
  }
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::prefetch(std::int64_t first, std::int64_t count) const {
  const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  const std::int64_t begin = first / page * page;
  const std::int64_t end = first + count;
  if (data_ != nullptr && begin >= 0 && end > begin && end <= static_cast<std::int64_t>(size_)) {
    // A hint: without it the pages come when they are read.
    ::madvise(const_cast<std::byte*>(data_) + begin, static_cast<std::size_t>(end - begin), MADV_WILLNEED);
  }
}

}  // namespace athanor::base
