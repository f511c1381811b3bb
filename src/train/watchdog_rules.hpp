// When a job hangs and who is to blame: arithmetic on what the ranks said last, without files, threads or
// clocks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/heartbeat.hpp"

namespace athanor::train {

/// Time without progress by a clock of ticks, from which jumps are taken out: when a tick came much later
/// than planned, the process stood still as a whole (SIGSTOP, a suspended job or machine), which says nothing
/// about the program.
class StallClock {
 public:
  explicit StallClock(double tick_s) : tick_s_(tick_s) {}

  /// `now_s`: of any steady clock; `progress`: anything that changes with progress.
  void tick(double now_s, std::uint64_t progress);
  double stalled_s() const { return stalled_s_; }
  /// Time that the last tick added; 0 after a jump.
  double elapsed_s() const { return elapsed_s_; }
  bool has_jumped() const { return has_jumped_; }

 private:
  double tick_s_;
  std::optional<double> last_s_;
  std::uint64_t progress_ = 0;
  double stalled_s_ = 0.0;
  double elapsed_s_ = 0.0;
  bool has_jumped_ = false;
};

/// What the kernel says of a process of this machine; unknown: of another one.
enum class ProcessLife { unknown, running, stopped, gone };

/// A rank as another one sees it.
struct RankSight {
  std::optional<base::Heartbeat> beat;  ///< its last heartbeat; none was ever seen
  double silent_s = 0.0;                ///< since its last heartbeat came
  ProcessLife life = ProcessLife::unknown;
  char process_state = '?';  ///< of this machine's ranks, as in /proc
};

/// `is_hang`: nobody whom this rank waits for can be expected to go on. `causes`: the ranks to look at,
/// rising; none: all have come, and still it does not end.
struct Verdict {
  bool is_hang = false;
  std::vector<int> causes;
};

/// Judges the standstill of rank `own`. A rank is to blame when it is gone, stopped or silent for `silent_s`;
/// failing that, when it is late outside a collective; failing that, when it is missing from the collective
/// that `own` waits in, unless a rank that goes on holds it up, directly or by others.
Verdict judge(const std::vector<RankSight>& ranks, int own, double silent_s);

/// Whether a rank that is neither gone, stopped nor silent made progress in the last `within_s`: such a job
/// is not ended, as a role may go on without another.
bool somebody_goes_on(const std::vector<RankSight>& ranks, double silent_s, double within_s);

/// "0-2,5,7-8" of rising ranks.
std::string rank_list(const std::vector<int>& ranks);

/// "rank 3 (student, host n1, process 17): step 7, forward, inside all_reduce number 4 of group ..., for 2.0
/// s".
std::string describe_rank(int rank, const RankSight& sight);

/// The report, without line ends: each rank's place (ranks at the same place share a line), then each
/// collective in which ranks wait and who is missing from it, then the ranks to blame.
std::vector<std::string> describe_ranks(const std::vector<RankSight>& ranks, const Verdict& verdict);

}  // namespace athanor::train
