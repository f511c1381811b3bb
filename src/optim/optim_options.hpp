// Options of the optimizer, with their defaults.
#pragma once

#include <cstdint>

#include "base/precision.hpp"

namespace athanor::optim {

enum class ScheduleKind { constant, linear, cosine, wsd };

/// `optim.*` of the configuration.
struct OptimOptions {
  double lr = 3e-4;
  double min_lr = 3e-5;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  std::int64_t warmup_steps = 0;
  ScheduleKind schedule = ScheduleKind::cosine;
  double clip = 1.0;            ///< global gradient norm; 0: no clipping
  std::int64_t zero = 1;        ///< 0: state on every holder; 1: state sharded over the holders of a slice
  std::int64_t max_skips = 20;  ///< consecutive skipped steps before the run stops with exit code 70

  /// Largest number of gradient elements reduced at once (rounded up so that every rank's part ends on a
  /// block). Bounds exchange buffers only and changes no bit of the result, so it is not a key of the
  /// configuration.
  std::int64_t bucket_elements = 8 << 20;
};

/// Throws ConfigError naming the option, its value and the legal ones. `min_lr` is checked for schedules that
/// use it.
void validate(const OptimOptions& options);

}  // namespace athanor::optim
