#include "base/line_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"

namespace athanor::base {
namespace {

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return false;
    }
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

}  // namespace

LineFile::LineFile(const std::string& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0) {
    throw CannotCreateError("cannot write {} ({}) choose another run.dir", path, std::strerror(errno));
  }
}

LineFile::~LineFile() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
}

LineFile::LineFile(LineFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), dropped_(other.dropped_) {}

LineFile& LineFile::operator=(LineFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(dropped_, other.dropped_);
  return *this;
}

bool LineFile::append(std::string_view line) {
  struct stat before {};
  const bool is_regular = ::fstat(fd_, &before) == 0 && S_ISREG(before.st_mode);
  if (write_all(fd_, std::string(line) + "\n")) {
    return true;
  }
  const std::string reason = std::strerror(errno);
  const bool is_whole = !is_regular || ::ftruncate(fd_, before.st_size) == 0;
  if (dropped_++ == 0) {
    log_local(LogLevel::warning,
              fmt::format("a line of {} could not be written ({}){}; lines are left out until "
                          "it can, the work goes on",
                          path_, reason, is_whole ? "" : ", and half of it stayed there"));
  }
  return false;
}

}  // namespace athanor::base
