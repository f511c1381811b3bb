// One job a run folder.
#pragma once

#include <string>

namespace athanor::checkpoint {

/// Holds <run>/.lock (flock and, for file systems without it, host and process id inside) for its lifetime.
/// Taken by world rank 0. A dead holder's lock (same host and no such process, or the flock is free) is taken
/// over. Throws CannotCreateError naming the holder's host, process and Slurm job.
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
