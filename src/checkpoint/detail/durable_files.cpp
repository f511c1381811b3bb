#include "checkpoint/detail/durable_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "base/error.hpp"

namespace athanor::checkpoint::detail {
namespace {

constexpr const char* storage_advice = "check the storage and its free space";

[[noreturn]] void fail(const char* what, const std::string& path, int error_number) {
  throw base::IoError("cannot {} {} ({}) {}", what, path, reason_of(error_number), storage_advice);
}

// An open file descriptor.
class Descriptor {
 public:
  Descriptor(const char* what, const std::string& path, int flags)
      : path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (fd_ < 0) {
      fail(what, path, errno);
    }
  }
  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  // close() reports errors of network file systems.
  void close() {
    const int fd = fd_;
    fd_ = -1;
    if (::close(fd) != 0) {
      fail("close", path_, errno);
    }
  }

 private:
  std::string path_;
  int fd_ = -1;
};

void write_all(const Descriptor& file, const std::string& path, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file.get(), bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail("write", path, errno);
    }
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

std::string reason_of(int error_number) {
  return std::generic_category().message(error_number);
}

void fsync_path(const std::string& path) {
  Descriptor file("open", path, O_RDONLY);
  if (::fsync(file.get()) != 0) {
    fail("fsync", path, errno);
  }
}

void write_durably(const std::string& folder, const std::string& name, std::string_view bytes) {
  const std::string aside = folder + "/.tmp-" + name;
  try {
    Descriptor file("create", aside, O_WRONLY | O_CREAT | O_TRUNC);
    write_all(file, aside, bytes);
    if (::fsync(file.get()) != 0) {
      fail("fsync", aside, errno);
    }
    file.close();
    rename_path(aside, folder + "/" + name);
  } catch (...) {
    ::unlink(aside.c_str());
    throw;
  }
}

void copy_durably(const std::string& source, const std::string& folder, const std::string& name) {
  if (!std::filesystem::is_regular_file(source)) {
    throw base::MissingInputError("{} is no file (it belongs into each checkpoint) restore it", source);
  }
  write_durably(folder, name, read_whole_file(source));
}

void rename_path(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    fail("rename to", to, errno);
  }
}

std::string read_whole_file(const std::string& path) {
  Descriptor file("open", path, O_RDONLY);
  std::string bytes;
  std::string piece(std::size_t{1} << 20, '\0');
  while (true) {
    const ssize_t count = ::read(file.get(), piece.data(), piece.size());
    if (count == 0) {
      return bytes;
    }
    if (count > 0) {
      bytes.append(piece, 0, static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      fail("read", path, errno);
    }
  }
}

std::int64_t free_bytes(const std::string& path) {
  struct statvfs status {};
  if (::statvfs(path.c_str(), &status) != 0) {
    fail("ask for the free space of", path, errno);
  }
  return static_cast<std::int64_t>(status.f_bavail) * static_cast<std::int64_t>(status.f_frsize);
}

std::int64_t allocated_bytes(const std::string& folder) {
  constexpr std::int64_t block_bytes = 512;  // the unit of st_blocks everywhere
  std::int64_t bytes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    struct stat status {};
    if (::stat(entry.path().c_str(), &status) == 0) {
      bytes += static_cast<std::int64_t>(status.st_blocks) * block_bytes;
    }
  }
  return bytes;
}

}  // namespace athanor::checkpoint::detail
