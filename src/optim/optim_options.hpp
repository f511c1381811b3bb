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

  bool overlap_reduce = false;  ///< buckets of gradients are summed while the last backward of a step runs
  bool overlap_gather = false;  ///< zero = 1: updated parameters arrive while the next forward runs

  /// Largest number of gradient elements reduced at once (rounded up so that every rank's part ends on a
  /// block). Bounds exchange buffers only and changes no bit of the result, so it is not a key of the
  /// configuration.
  std::int64_t bucket_elements = 8 << 20;
};

/// Which gradients lie in FP8 from when a backward pass has made them until they are summed.
enum class StoredGradients { none, experts, all };

/// How gradients travel to the owners of their sums (`precision.*` of the configuration).
struct GradientWire {
  base::WireType type = base::WireType::full;
  base::Fp8Format fp8_format = base::Fp8Format::e4m3;
  /// Adds what rounding took from a rank's gradient to its gradient of the next step (Seide et al. 2014).
  /// Takes one more number of the accumulation type for each gradient.
  bool error_feedback = false;
  /// Rounded where they are made instead of on their way: to the same numbers, so only their memory differs.
  StoredGradients stored = StoredGradients::none;
};

/// Throws ConfigError for a wire that `options` or the accumulation type (`is_f64`) exclude.
void validate(const GradientWire& wire, const OptimOptions& options, bool is_f64);

/// Throws ConfigError naming the option, its value and the legal ones. `min_lr` is checked for schedules that
/// use it.
void validate(const OptimOptions& options);

}  // namespace athanor::optim
