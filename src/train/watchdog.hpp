// A thread beside each rank's work that notices when the job stands still, says who is to blame, and ends it.
//
// Ranks tell each other where they are through small files in the run's folder, rewritten every tick: the
// main thread may be stuck in MPI, which other threads may not call. The folder is the one place that all
// nodes of a run share anyway.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "base/heartbeat.hpp"
#include "parallel/communicator.hpp"

namespace athanor::train {

struct WatchdogOptions {
  std::string folder;    ///< for the heartbeats; emptied at start
  std::string log_file;  ///< the report is appended to it; empty: to stderr alone
  std::string role;
  /// Seconds without progress, by WatchedPhase, after which the ranks' places are printed; 0: not watched.
  std::array<double, base::num_watched_phases> soft_s = {1800.0, 600.0, 600.0, 1800.0};
  double hard_factor = 3.0;  ///< times soft_s: the job ends with exit code 70; 0: never
};

/// Progress is any span of a step, phase, computation or collective that begins or ends on the thread that
/// made the watchdog. A wait between roles that has a deadline of its own is not called late, nor is a rank
/// that waits in a collective for ranks that go on.
class Watchdog {
 public:
  /// Starts the thread, unless all phases are unwatched. Collective over `world`. Throws CannotCreateError.
  Watchdog(const WatchdogOptions& options, const parallel::Communicator& world);
  /// Stops it; leaves the last heartbeats where they are.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// The work is done: stops the thread and removes the folder. Collective over `world`.
  void finish(const parallel::Communicator& world);

 private:
  struct State;
  std::unique_ptr<State> state_;  // none: nothing is watched
};

}  // namespace athanor::train
