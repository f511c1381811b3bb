#include "train/monitors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace athanor::train {
namespace {

template <typename Values>
double mean_of(const Values& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void push(std::deque<double>& window, double value, std::int64_t size) {
  window.push_back(value);
  while (static_cast<std::int64_t>(window.size()) > size) {
    window.pop_front();
  }
}

}  // namespace

double fluctuation(const std::vector<double>& values) {
  if (values.size() < 2) {
    return 0.0;
  }
  const double mean = mean_of(values);
  double squares = 0.0;
  for (const double value : values) {
    squares += (value - mean) * (value - mean);
  }
  return mean == 0.0 ? 0.0 : std::sqrt(squares / static_cast<double>(values.size())) / std::abs(mean);
}

double percentile(std::vector<double> values, double share) {
  const double rank = std::ceil(share * static_cast<double>(values.size()));
  const auto index = static_cast<std::ptrdiff_t>(std::max(rank, 1.0)) - 1;
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[static_cast<std::size_t>(index)];
}

std::vector<std::string> Monitors::note(StepMetrics& metrics, const std::vector<double>& losses) {
  push(use_stds_, metrics.expert_use_std, options_.window);
  push(times_s_, metrics.times.total_s, options_.window);
  std::vector<std::string> lines;
  if (static_cast<std::int64_t>(losses.size()) >= options_.window) {
    const double value = fluctuation(losses);
    metrics.monitors["loss_fluctuation"] = value;
    judge({"the loss fluctuates (std / mean)", "monitor.loss_fluctuation", value, options_.loss_fluctuation},
          metrics.step, lines);
  }
  if (static_cast<std::int64_t>(times_s_.size()) < options_.window) {
    return lines;
  }
  if (!metrics.layers.empty()) {
    judge({"expert use is uneven (mean std of f / mu)", "monitor.expert_use_std", mean_of(use_stds_),
           options_.expert_use_std},
          metrics.step, lines);
  }
  const std::vector<double> times(times_s_.begin(), times_s_.end());
  const double slow_s = percentile(times, 0.99);
  const double median_s = percentile(times, 0.5);
  metrics.monitors["step_time_p99_s"] = slow_s;
  judge({"slow steps (P99 / median of the step times)", "monitor.step_time_ratio",
         median_s > 0.0 ? slow_s / median_s : 0.0, options_.step_time_ratio},
        metrics.step, lines);
  return lines;
}

void Monitors::judge(const Figure& figure, std::int64_t step, std::vector<std::string>& lines) {
  if (figure.threshold <= 0.0 || !(figure.value > figure.threshold)) {
    said_at_.erase(figure.key);
    return;
  }
  const auto said = said_at_.find(figure.key);
  if (said == said_at_.end() || step - said->second >= options_.repeat_every) {
    said_at_[figure.key] = step;
    lines.push_back(fmt::format("monitor: step {}: {} is {:.3f}, above {}={}", step, figure.name,
                                figure.value, figure.key, figure.threshold));
  }
}

}  // namespace athanor::train
