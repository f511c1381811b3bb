// Whether teacher and student go at one pace: each side judges by its own clock, nothing is exchanged.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "parallel/process_grid.hpp"
#include "train/step_metrics.hpp"

namespace athanor::train {

/// The two sides are a bad fit when the slower one takes more than so many times as long for a step.
inline constexpr double widest_pace_ratio = 5.0;
/// Fewer steps than these say nothing of a pace.
inline constexpr std::int64_t fewest_paced_steps = 5;

/// The pace of one rank over the steps of this job; the first step, which waits for the other side's start,
/// is left out where there are others.
struct PairFigures {
  std::int64_t steps = 0;     ///< counted
  double step_s = 0.0;        ///< mean length of a step
  double wait_s = 0.0;        ///< of it waiting for the other side
  double link_bytes = 0.0;    ///< of a step, over all ranks of the role
  double loss = 0.0;          ///< mean of the last 10 steps; NaN without steps
  double teacher_loss = 0.0;  ///< of the same tokens, as a student knows it; NaN elsewhere

  double busy_s() const { return step_s - wait_s; }
  /// In [0, 1]; 0 without steps.
  double wait_share() const { return step_s > 0.0 ? wait_s / step_s : 0.0; }
  /// How many times as long as this side the other one takes for a step, as far as this side has to wait for
  /// it: at least 1.
  double pace_ratio() const;
};

struct PairFitOptions {
  parallel::RoleKind kind = parallel::RoleKind::student;
  std::string ranks;              ///< of both sides, for the warning: "teacher.ranks=2, student.ranks=1"
  std::int64_t after_steps = 10;  ///< judged after so many counted steps, and at the end of the job
  std::function<void(const std::string&)> inform;  ///< takes the finding; empty: not told
  std::function<void(const std::string&)> warn;    ///< takes what to change when the fit is bad; at most once
};

/// Takes the steps of one rank as they end. Changes nothing and communicates with nobody.
class PairFit {
 public:
  explicit PairFit(PairFitOptions options);
  void add(const StepMetrics& metrics);
  /// After the last step: warns when the whole job was a bad fit and nothing was said of it before.
  void finish();
  PairFigures figures() const;

 private:
  struct Pace {
    double total_s = 0.0;
    double wait_s = 0.0;
  };
  PairFigures early_figures() const;
  std::string describe(const PairFigures& figures) const;
  /// Returns whether the fit is bad; warns of the first time.
  bool judge(const PairFigures& figures);

  PairFitOptions options_;
  bool has_warned_ = false;
  std::int64_t seen_ = 0;
  PairFigures sums_;
  std::vector<Pace> early_;  // of the first counted steps
  std::deque<double> losses_;
  std::deque<double> teacher_losses_;
};

}  // namespace athanor::train
