#include "optim/loss_scaler.hpp"

#include "base/error.hpp"

namespace athanor::optim {
namespace {

constexpr double first_dynamic_scale = 65536.0;
constexpr double smallest_scale = 1.0;

}  // namespace

LossScaler::LossScaler(bool dynamic, std::int64_t growth_interval)
    : dynamic_(dynamic), growth_interval_(growth_interval) {
  ATHANOR_CHECK(growth_interval >= 1, "growth interval {}", growth_interval);
  state_.scale = dynamic ? first_dynamic_scale : 1.0;
}

void LossScaler::update(bool finite) {
  if (finite) {
    state_.consecutive_skips = 0;
    state_.had_good_step = true;
    ++state_.clean_steps;
    if (dynamic_ && state_.clean_steps >= growth_interval_) {
      state_.scale *= 2.0;
      state_.clean_steps = 0;
    }
    return;
  }
  state_.clean_steps = 0;
  ++state_.total_skips;
  const bool can_halve = dynamic_ && state_.scale > smallest_scale;
  if (can_halve) {
    state_.scale *= 0.5;
  }
  if (state_.had_good_step || !can_halve) {
    ++state_.consecutive_skips;
  }
}

}  // namespace athanor::optim
