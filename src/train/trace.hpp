// The timeline of a job: what every rank did in some steps, in one file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "parallel/communicator.hpp"

namespace athanor::train {

struct TraceOptions {
  std::int64_t steps = 0;  ///< 0: none
  std::int64_t from = 0;   ///< first of them; 0: the job's third, or earlier in a short job
};

/// Records this rank's spans (base/activity.hpp) from its construction on.
class JobTrace {
 public:
  /// What the trace calls this rank, and where it goes.
  struct Place {
    std::string role;
    int role_rank = 0;
    std::string run_dir;  ///< of all ranks; the trace becomes <run_dir>/trace.json
  };
  /// Finds out by how much the ranks' clocks differ. Collective over `world`, which outlives this. Without
  /// steps to trace nothing happens here and later.
  JobTrace(const TraceOptions& options, Place place, const parallel::Communicator& world);
  ~JobTrace();
  JobTrace(const JobTrace&) = delete;
  JobTrace& operator=(const JobTrace&) = delete;

  /// Before the first step: how many were done before this job, and which is its last.
  void start(std::int64_t first_step, std::int64_t last_step);
  /// Writes the file; each rank its part, world rank 0 the whole. Collective over the world. Throws IoError.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;  // none: no trace
};

}  // namespace athanor::train
