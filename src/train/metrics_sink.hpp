// Where a run's numbers go: metrics.jsonl, a progress line on a terminal, plain log lines otherwise.
#pragma once

#include <cstdint>
#include <string>

#include "base/line_file.hpp"
#include "infer/evaluator.hpp"
#include "train/step_metrics.hpp"

namespace athanor::train {

struct MetricsSinkOptions {
  std::string path;             ///< metrics.jsonl; empty: none (ranks other than 0)
  std::int64_t first_step = 0;  ///< steps done already: lines of later ones are cut from an existing file
  std::int64_t total_steps = 0;
  std::int64_t log_every = 10;
  bool leads = true;  ///< false: another role's rank shows the live line and logs plainly
  std::string role = "teacher";
};

/// Writes one JSON object a step and one an evaluation; only rank 0 of a role makes one that prints.
class MetricsSink {
 public:
  /// Throws CannotCreateError when the file cannot be opened.
  explicit MetricsSink(const MetricsSinkOptions& options);
  ~MetricsSink();
  MetricsSink(const MetricsSink&) = delete;
  MetricsSink& operator=(const MetricsSink&) = delete;

  void write_step(const StepMetrics& metrics);
  void write_evaluation(std::int64_t step, const std::vector<infer::DomainLoss>& losses);
  /// Whether the file already held an evaluation of step `first_step`.
  bool had_evaluation() const { return had_evaluation_; }

 private:
  void show_progress(const StepMetrics& metrics);

  MetricsSinkOptions options_;
  base::LineFile file_;
  bool terminal_ = false;
  bool line_open_ = false;
  bool had_evaluation_ = false;
  double smoothed_step_s_ = 0.0;
};

}  // namespace athanor::train
