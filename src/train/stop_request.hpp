// When a job stops before its last step: a signal, or too little time left; agreed by all ranks.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "parallel/communicator.hpp"

namespace athanor::parallel {
class Mailbox;
}

namespace athanor::train {

struct StopOptions {
  std::int64_t end_time = 0;     ///< when the job is ended by force, seconds since 1970; 0: unknown
  double margin_s = 60.0;        ///< kept free before end_time, beside the estimate
  std::int64_t steps_ahead = 1;  ///< steps that will have been made until a wish of now has taken effect
};

/// What the rest of a job would take: enough for the longest of the last steps and for a checkpoint.
class TimeEstimate {
 public:
  void note_step(double seconds);
  void note_save(double seconds);
  /// Seconds until `steps` more steps are done and saved, with a safety factor.
  double seconds_for(std::int64_t steps) const;

 private:
  std::deque<double> recent_steps_s_;
  double longest_save_s_ = 0.0;
};

/// This rank's part in the decision. Signals are those of base/signal_flag.hpp, which only note them.
///
/// With one role any rank's wish, summed by a reduction of the step, stops all of them. With several the
/// role of world rank 0 decides for all and tells them in band (design section 6); ranks of other roles send
/// world rank 0 a letter, which it reads once a step.
class StopRequest {
 public:
  /// Collective over `world` and over `role`, which is this rank's part of it.
  StopRequest(const StopOptions& options, const parallel::Communicator& world,
              const parallel::Communicator& role);
  ~StopRequest();
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  /// Whether this rank wants the job to stop; once true, always true. Does not wait.
  bool is_wanted();
  /// Whether any rank of `comm` wants it. Collective over `comm`.
  bool agree(const parallel::Communicator& comm);
  /// All ranks are in one role: they may stop after any step without telling anybody.
  bool is_only_role() const { return is_only_role_; }
  /// Closes a job: why it `stopped` before its end on some rank, or "". The same on all ranks; collective
  /// over `world`. Completes letters under way.
  std::string conclude(bool stopped, const parallel::Communicator& world);
  TimeEstimate& times() { return times_; }

 private:
  std::string look_around();

  StopOptions options_;
  bool is_only_role_ = true;
  bool leads_ = true;  // this rank's role decides
  int world_rank_ = 0;
  std::unique_ptr<parallel::Mailbox> letters_;  // with several roles
  std::string reason_;                          // why this rank wants it; empty: it does not
  TimeEstimate times_;
};

}  // namespace athanor::train
