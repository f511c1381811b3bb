// Figures of a run with thresholds: said in the log when they are crossed, without effect on training.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "train/step_metrics.hpp"

namespace athanor::train {

/// `monitor.*` of the configuration. A threshold of 0 is never crossed.
struct MonitorOptions {
  double expert_use_std = 0.15;      ///< mean over the window of the std over experts of f_i / mu
  double loss_fluctuation = 0.3;     ///< std / mean of the losses in the guard's window
  double step_time_ratio = 2.0;      ///< P99 of the step times over their median
  std::int64_t window = 100;         ///< steps of expert use and step times
  std::int64_t repeat_every = 1000;  ///< steps until a figure that stays above its threshold is said again
};

/// std / mean; 0 for fewer than two values or a mean of 0.
double fluctuation(const std::vector<double>& values);
/// The smallest value that at least `share` of them do not exceed; `values` is not empty.
double percentile(std::vector<double> values, double share);

class Monitors {
 public:
  explicit Monitors(const MonitorOptions& options) : options_(options) {}

  /// Takes a step and adds metrics.monitors: loss_fluctuation (`losses`: the guard's window, so that it is
  /// the same after a restart) and step_time_p99_s, once the monitor's window is full. Returns what is to be
  /// said: a line for each figure that has crossed its threshold, or is still above it after repeat_every
  /// steps.
  std::vector<std::string> note(StepMetrics& metrics, const std::vector<double>& losses);

 private:
  struct Figure {
    const char* name;
    const char* key;
    double value;
    double threshold;
  };
  void judge(const Figure& figure, std::int64_t step, std::vector<std::string>& lines);

  MonitorOptions options_;
  std::deque<double> use_stds_;
  std::deque<double> times_s_;
  std::map<std::string, std::int64_t> said_at_;  // by key: steps of figures that are above their threshold
};

}  // namespace athanor::train
