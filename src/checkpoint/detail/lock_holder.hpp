// Who holds a run folder: the text inside <run>/.lock.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace athanor::checkpoint::detail {

struct LockHolder {
  std::string host;
  std::int64_t process = 0;
  std::int64_t process_start =
      0;            ///< clock ticks since boot: tells a process from a later one of the same id
  std::string job;  ///< Slurm job id; empty outside Slurm

  bool operator==(const LockHolder&) const = default;
};

LockHolder this_process();
std::string to_text(const LockHolder& holder);
/// The inverse of to_text. Text that is empty or no holder gives one without host.
LockHolder holder_from_text(std::string_view text);
/// "process 123 on node7, Slurm job 45".
std::string describe(const LockHolder& holder);
/// Whether a holder of this machine has ended; false for holders of other machines, of which nothing is
/// known.
bool is_known_dead(const LockHolder& holder);

}  // namespace athanor::checkpoint::detail
