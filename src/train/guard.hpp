// Numeric guards: which steps are spikes, what follows from them, and what of that outlives a step.
//
// Arithmetic on values that were reduced over the role, so that all ranks decide alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace athanor::train {

/// What follows from a step whose loss or gradient norm stands out.
enum class GuardAction {
  off,       ///< nothing; values are not looked at
  warn,      ///< a line in the log; training goes on as without a guard
  skip,      ///< the step is run again; unless that shows a passing fault, its update is left out
  rollback,  ///< as skip; after too many in a row back to a checkpoint, and past the batches
};

/// `guard.*` of the configuration.
struct GuardOptions {
  GuardAction action = GuardAction::warn;
  std::int64_t window = 128;         ///< steps whose median and spread say what is ordinary
  double loss_mads = 10.0;           ///< of a spike: median absolute deviations above the median
  double norm_factor = 10.0;         ///< of a spike: times the median gradient norm
  std::int64_t min_steps = 64;       ///< in the window before anything is a spike
  std::int64_t max_trips = 5;        ///< steps in a row that trip before more is done than skipping them
  std::int64_t hold_steps = 20;      ///< after a trip without a periodic checkpoint
  std::int64_t max_rollbacks = 3;    ///< of a run
  std::int64_t skip_batches = 0;     ///< passed over at a rollback besides those up to the last trip
  std::int64_t replica_every = 100;  ///< steps between comparisons of replicated parameters; 0: none
  std::string bundle_dir;            ///< for the files that describe a trip; empty: none are written

  /// Steps are not applied as they come: they may be run again or skipped.
  bool acts() const { return action == GuardAction::skip || action == GuardAction::rollback; }
};

/// What of the guard outlives a step; part of TrainState. Steps are numbered from 1.
struct GuardState {
  std::vector<double> losses;    ///< of the last ordinary steps, the oldest first
  std::vector<double> norms;     ///< of the same steps
  std::int64_t bad_steps = 0;    ///< that tripped in a row, up to the last one
  std::int64_t first_bad = 0;    ///< the first of these; 0: none
  std::int64_t last_trip = 0;    ///< the last step that tripped; 0: none
  std::int64_t trips = 0;        ///< of the run
  std::int64_t transients = 0;   ///< steps that were other when run again
  std::int64_t repairs = 0;      ///< parameters restored from another replica
  std::int64_t rollbacks = 0;    ///< of the run
  std::int64_t passed_over = 0;  ///< batches passed over at rollbacks
  std::string stage;             ///< of the objective, that the windows are of

  bool operator==(const GuardState&) const = default;
};

enum class TripKind { none, loss, norm, nonfinite_loss, nonfinite_norm };

/// What stands out of a step, and against what.
struct Trip {
  TripKind kind = TripKind::none;
  double value = 0.0;
  double limit = 0.0;
  double median = 0.0;

  explicit operator bool() const { return kind != TripKind::none; }
  bool is_nonfinite() const { return kind == TripKind::nonfinite_loss || kind == TripKind::nonfinite_norm; }
  /// "loss 9.1 above 4.2 (median 3.9 of 128 steps)"; empty for none.
  std::string describe(std::int64_t window_steps) const;
};

class Guard {
 public:
  explicit Guard(const GuardOptions& options) : options_(options) {}

  /// A step of `stage` begins: another one has other norms, so its windows begin empty.
  void enter(GuardState& state, const std::string& stage) const;
  /// Whether a step with these values is a spike. A loss or norm that is not finite always is.
  Trip judge(const GuardState& state, double loss, double norm) const;
  /// A step was ordinary: its values go into the window.
  void note_ordinary(GuardState& state, double loss, double norm) const;
  /// Values of a step go into the window, unless they are not finite.
  void take_values(GuardState& state, double loss, double norm) const;
  /// Counts a trip at `step`.
  void note_trip(GuardState& state, std::int64_t step) const;
  /// Whether the steps that tripped in a row are too many to go on with.
  bool is_too_much(const GuardState& state) const { return state.bad_steps >= options_.max_trips; }
  bool may_roll_back(const GuardState& state) const;
  /// Whether the state after `step` is too near to a trip to be saved on a schedule or to be gone back to.
  bool holds(const GuardState& state, std::int64_t step) const;
  const GuardOptions& options() const { return options_; }

 private:
  GuardOptions options_;
};

/// The state after going back: that of the checkpoint of `step`, with the counters of the run.
GuardState after_rollback(const GuardState& stored, const GuardState& current, std::int64_t step,
                          std::int64_t passed_over);

/// Median, and the median of the distances from it; both 0 for no values. Values are finite.
struct RobustSpread {
  double median = 0.0;
  double deviation = 0.0;
};
RobustSpread robust_spread(std::vector<double> values);

}  // namespace athanor::train
