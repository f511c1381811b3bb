// One job a run folder.
#pragma once

#include <string>

namespace athanor::checkpoint {

/// Holds <run>/.lock for its lifetime: by flock, and on file systems without it by host and process id
/// inside. Taken by world rank 0. A dead holder's lock is taken over with a warning: the flock is free or,
/// without flock, it was a process of this host that has ended. Throws CannotCreateError naming the holder's
/// host, process and Slurm job, or why the file cannot be made.
class RunLock {
 public:
  explicit RunLock(const std::string& run_dir);
  ~RunLock();
  RunLock(RunLock&&) noexcept;
  RunLock& operator=(RunLock&&) noexcept;
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_ = -1;
  std::string path_;
};

}  // namespace athanor::checkpoint
