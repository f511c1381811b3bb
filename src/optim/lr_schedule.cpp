#include "optim/lr_schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.hpp"

namespace athanor::optim {
namespace {

// Share of the decay that is behind `step`, in [0, 1].
double decay_progress(std::int64_t step, std::int64_t first, std::int64_t total_steps) {
  if (step >= total_steps) {
    return 1.0;
  }
  if (step <= first) {
    return 0.0;
  }
  return static_cast<double>(step - first) / static_cast<double>(total_steps - first);
}

}  // namespace

double learning_rate(const OptimOptions& options, std::int64_t step, std::int64_t total_steps) {
  ATHANOR_CHECK(step >= 0 && total_steps >= 0, "step {} of {}", step, total_steps);
  const std::int64_t warmup = options.warmup_steps;
  if (step < warmup) {
    return options.lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  }
  switch (options.schedule) {
    case ScheduleKind::constant:
      return options.lr;
    case ScheduleKind::linear: {
      const double progress = decay_progress(step, warmup, total_steps);
      return options.lr + progress * (options.min_lr - options.lr);
    }
    case ScheduleKind::cosine: {
      const double progress = decay_progress(step, warmup, total_steps);
      return options.min_lr +
             0.5 * (options.lr - options.min_lr) * (1.0 + std::cos(std::numbers::pi * progress));
    }
    case ScheduleKind::wsd: {
      const std::int64_t decay_steps = (total_steps + 4) / 5;
      const double progress = decay_progress(step, std::max(warmup, total_steps - decay_steps), total_steps);
      return options.lr + progress * (options.min_lr - options.lr);
    }
  }
  throw base::InternalError("unknown schedule {}", static_cast<int>(options.schedule));
}

}  // namespace athanor::optim
