// Dynamic loss scaling for fp16.
#pragma once

#include <cstdint>

namespace athanor::optim {

/// Everything of the scaler that outlives a step (part of the checkpoint).
struct LossScaleState {
  double scale = 1.0;
  std::int64_t clean_steps = 0;       ///< good steps since the last change
  std::int64_t consecutive_skips = 0; ///< not counting halvings before the first good step (fp16 only)
  std::int64_t total_skips = 0;
  bool had_good_step = false;
};

/// Starts at 2^16 (fp16) or 1 (fixed, other types); halves on overflow; doubles after `growth_interval` clean steps.
class LossScaler {
 public:
  explicit LossScaler(bool dynamic, std::int64_t growth_interval = 2000);
  double scale() const { return state_.scale; }
  /// Reports whether the step's gradients were finite on all ranks (the caller has agreed on it).
  void update(bool finite);
  const LossScaleState& state() const { return state_; }
  void set_state(const LossScaleState& state) { state_ = state; }

 private:
  bool dynamic_ = false;
  std::int64_t growth_interval_ = 2000;
  LossScaleState state_;
};

}  // namespace athanor::optim
