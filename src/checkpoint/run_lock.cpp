#include "checkpoint/run_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/detail/durable_files.hpp"
#include "checkpoint/detail/lock_holder.hpp"

namespace athanor::checkpoint {
namespace {

using detail::LockHolder;

enum class FlockResult { taken, held, unsupported };

FlockResult try_flock(int fd, const std::string& path) {
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    switch (errno) {
      case EINTR:
        continue;
      case EWOULDBLOCK:
        return FlockResult::held;
      case ENOLCK:
      case ENOSYS:
      case EOPNOTSUPP:
      case EINVAL:
        return FlockResult::unsupported;
      default:
        throw base::CannotCreateError("cannot lock {} ({}) choose a run.dir on another file system", path,
                                      detail::reason_of(errno));
    }
  }
  return FlockResult::taken;
}

// Whether `path` still names the open file: someone may have deleted it between open and lock.
bool is_same_file(int fd, const std::string& path) {
  struct stat opened {};
  struct stat named {};
  return ::fstat(fd, &opened) == 0 && ::stat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino &&
         opened.st_dev == named.st_dev;
}

std::string text_of(int fd) {
  std::string text(4096, '\0');
  const ssize_t count = ::pread(fd, text.data(), text.size(), 0);
  text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return text;
}

void write_holder(int fd, const std::string& path, std::string_view text) {
  if (::ftruncate(fd, 0) != 0 ||
      ::pwrite(fd, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) || ::fsync(fd) != 0) {
    throw base::CannotCreateError("cannot write {} ({}) free some space or choose another run.dir", path,
                                  detail::reason_of(errno));
  }
}

[[noreturn]] void refuse(const std::string& run_dir, const LockHolder& holder, const char* advice) {
  throw base::CannotCreateError("{} is in use by {} (one job a run folder) {}", run_dir,
                                detail::describe(holder), advice);
}

// Throws unless the folder is free, given what flock said.
void check_holder(const std::string& run_dir, FlockResult flock_result, const LockHolder& holder) {
  if (flock_result == FlockResult::held) {
    refuse(run_dir, holder, "wait for it to end or choose another run.dir");
  }
  if (holder.host.empty()) {
    return;
  }
  if (flock_result == FlockResult::unsupported && !detail::is_known_dead(holder)) {
    refuse(run_dir, holder,
           "this file system has no locks: if that job has ended, delete the file .lock in the run folder");
  }
  base::log_warning("{}: taking over the lock of {}, which has ended without releasing it", run_dir,
                    detail::describe(holder));
}

}  // namespace

RunLock::RunLock(const std::string& run_dir) : path_(run_dir + "/.lock") {
  constexpr int attempts = 10;
  try {
    for (int attempt = 0; attempt < attempts; ++attempt) {
      fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
      if (fd_ < 0) {
        throw base::CannotCreateError("cannot create {} ({}) choose a run.dir that this user may write",
                                      path_, detail::reason_of(errno));
      }
      const FlockResult flock_result = try_flock(fd_, path_);
      if (is_same_file(fd_, path_)) {
        check_holder(run_dir, flock_result, detail::holder_from_text(text_of(fd_)));
        write_holder(fd_, path_, detail::to_text(detail::this_process()));
        return;
      }
      ::close(std::exchange(fd_, -1));
    }
  } catch (...) {
    if (fd_ >= 0) {
      ::close(fd_);
    }
    throw;
  }
  throw base::CannotCreateError("cannot lock {} (it is deleted again and again) find out who does that",
                                path_);
}

RunLock::~RunLock() {
  if (fd_ >= 0) {
    // The file stays, empty: deleting it would let two others lock two different files.
    [[maybe_unused]] const int ignored = ::ftruncate(fd_, 0);
    ::close(fd_);
  }
}

RunLock::RunLock(RunLock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

RunLock& RunLock::operator=(RunLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

}  // namespace athanor::checkpoint
