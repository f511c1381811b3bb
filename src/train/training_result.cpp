#include "train/training_result.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>

namespace athanor::train {

void summarise(const std::vector<StepMetrics>& history, TrainingResult& result) {
  result.steps = static_cast<std::int64_t>(history.size());
  if (history.empty()) {
    result.first_loss = result.last_loss = std::numeric_limits<double>::quiet_NaN();
    return;
  }
  const std::size_t tail = std::min<std::size_t>(10, history.size());
  std::vector<double> rates;
  std::map<std::string, double> counts;
  for (const StepMetrics& step : history) {
    for (const auto& [name, value] : step.figures) {
      result.figures[name] += value;
      counts[name] += 1.0;
    }
  }
  for (auto& [name, value] : result.figures) {
    value /= counts[name];  // some steps have figures that others have not
  }
  for (std::size_t i = 0; i < history.size(); ++i) {
    rates.push_back(history[i].tokens_per_s);
    if (i + tail >= history.size()) {
      result.last_loss += history[i].loss / static_cast<double>(tail);
      result.expert_use_std += history[i].expert_use_std / static_cast<double>(tail);
    }
  }
  std::nth_element(rates.begin(), rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2), rates.end());
  result.tokens_per_s = rates[rates.size() / 2];
  result.first_loss = history.front().loss;
  result.peak_rss_bytes = history.back().peak_rss_bytes;
}

std::string describe_stop(const TrainingResult& result) {
  const std::string after = result.steps > 0 ? fmt::format("after step {}", result.first_step + result.steps)
                                             : "before the first step of this job";
  const std::string saved =
      result.checkpoint.empty() ? "no checkpoint was made" : "saved in " + result.checkpoint;
  return fmt::format("STOPPED {} ({}): {}; give the same command again to go on (exit code 75)", after,
                     result.stopped, saved);
}

}  // namespace athanor::train
