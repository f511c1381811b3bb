#include "distill/signal_file/detail/output_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/error.hpp"

namespace athanor::distill::signal_file::detail {
namespace {

[[noreturn]] void fail(const char* what, const std::string& path) {
  throw base::IoError("cannot {} {} ({}) check the storage and its free space", what, path,
                      std::strerror(errno));
}

void sync_folder(const std::string& folder) {
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    fail("open", folder);
  }
  const int result = ::fsync(fd);
  ::close(fd);
  if (result != 0) {
    fail("fsync", folder);
  }
}

}  // namespace

OutputFile::OutputFile(const std::string& path)
    : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (fd_ < 0) {
    fail("create", path);
  }
  struct stat status {};
  if (::fstat(fd_, &status) != 0) {
    const int reason = errno;
    ::close(fd_);
    errno = reason;
    fail("examine", path);
  }
  size_ = status.st_size;
}

OutputFile::~OutputFile() {
  ::close(fd_);
}

void OutputFile::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail("write", path_);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    size_ += written;
  }
}

void OutputFile::sync() {
  if (::fdatasync(fd_) != 0) {
    fail("fsync", path_);
  }
}

void write_whole_file(const std::string& path, std::string_view bytes) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    fail("remove", path);
  }
  OutputFile file(path);
  file.append(std::as_bytes(std::span(bytes.data(), bytes.size())));
  file.sync();
}

void rename_durably(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    fail("rename to", to);
  }
  sync_folder(std::filesystem::path(to).parent_path().string());
}

void truncate_file(const std::string& path, std::int64_t size) {
  if (::truncate(path.c_str(), size) != 0) {
    fail("cut", path);
  }
}

}  // namespace athanor::distill::signal_file::detail
