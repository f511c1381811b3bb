// Dynamic loss scaling for fp16.
#pragma once

#include <cstdint>

namespace athanor::optim {

/// Everything of the scaler that outlives a step (part of the checkpoint).
struct LossScaleState {
  double scale = 1.0;
  std::int64_t clean_steps = 0;        ///< good steps since the last change
  std::int64_t consecutive_skips = 0;  ///< not counting halvings before the first good step (fp16 only)
  std::int64_t total_skips = 0;
  bool had_good_step = false;

  bool operator==(const LossScaleState&) const = default;
};

/// The factor on the loss, and the count of skipped steps of every compute type.
///
/// Dynamic (fp16): starts at 2^16, halves on overflow, but not below 1, doubles after `growth_interval` clean
/// steps. Always a power of two, so scaling and unscaling are exact. Fixed (other types): 1. Halvings before
/// the first good step search for the scale and are no run of skips; an overflow at scale 1 has nothing left
/// to halve and counts.
class LossScaler {
 public:
  /// `growth_interval` >= 1.
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
