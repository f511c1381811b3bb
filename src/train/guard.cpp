#include "train/guard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace athanor::train {
namespace {

// Losses of a converged run may hardly move: a spike is at least this part of the median away per deviation.
constexpr double smallest_relative_deviation = 0.01;

double median_of(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) {
    return *middle;
  }
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

void push(std::vector<double>& window, double value, std::int64_t size) {
  window.push_back(value);
  if (const auto excess = static_cast<std::int64_t>(window.size()) - size; excess > 0) {
    window.erase(window.begin(), window.begin() + excess);
  }
}

}  // namespace

RobustSpread robust_spread(std::vector<double> values) {
  if (values.empty()) {
    return {};
  }
  RobustSpread spread;
  spread.median = median_of(values);
  for (double& value : values) {
    value = std::abs(value - spread.median);
  }
  spread.deviation = median_of(values);
  return spread;
}

std::string Trip::describe(std::int64_t window_steps) const {
  switch (kind) {
    case TripKind::none:
      return "";
    case TripKind::nonfinite_loss:
      return "the loss is not finite";
    case TripKind::nonfinite_norm:
      return "the gradient is not finite";
    case TripKind::loss:
      return fmt::format("loss {:.6g} above {:.6g} (median {:.6g} of {} steps)", value, limit, median,
                         window_steps);
    case TripKind::norm:
      return fmt::format("gradient norm {:.6g} above {:.6g} (median {:.6g} of {} steps)", value, limit,
                         median, window_steps);
  }
  return "";
}

void Guard::enter(GuardState& state, const std::string& stage) const {
  if (state.stage != stage) {
    state.stage = stage;
    state.losses.clear();
    state.norms.clear();
  }
}

Trip Guard::judge(const GuardState& state, double loss, double norm) const {
  if (options_.action == GuardAction::off) {
    return {};
  }
  if (!std::isfinite(norm)) {
    return {TripKind::nonfinite_norm, norm, 0.0, 0.0};
  }
  if (!std::isfinite(loss)) {
    return {TripKind::nonfinite_loss, loss, 0.0, 0.0};
  }
  if (static_cast<std::int64_t>(state.losses.size()) < options_.min_steps) {
    return {};
  }
  const RobustSpread losses = robust_spread(state.losses);
  const double deviation = std::max(losses.deviation, smallest_relative_deviation * std::abs(losses.median));
  const double loss_limit = losses.median + options_.loss_mads * deviation;
  if (loss > loss_limit) {
    return {TripKind::loss, loss, loss_limit, losses.median};
  }
  const RobustSpread norms = robust_spread(state.norms);
  const double norm_limit = options_.norm_factor * norms.median;
  // Gradients that were zero for most of the window say nothing about what is large.
  if (norms.median > 0.0 && norm > norm_limit) {
    return {TripKind::norm, norm, norm_limit, norms.median};
  }
  return {};
}

void Guard::note_ordinary(GuardState& state, double loss, double norm) const {
  state.bad_steps = 0;
  state.first_bad = 0;
  take_values(state, loss, norm);
}

void Guard::take_values(GuardState& state, double loss, double norm) const {
  if (std::isfinite(loss) && std::isfinite(norm)) {
    push(state.losses, loss, options_.window);
    push(state.norms, norm, options_.window);
  }
}

void Guard::note_trip(GuardState& state, std::int64_t step) const {
  if (state.bad_steps == 0) {
    state.first_bad = step;
  }
  ++state.bad_steps;
  ++state.trips;
  state.last_trip = step;
}

bool Guard::may_roll_back(const GuardState& state) const {
  return options_.action == GuardAction::rollback && state.rollbacks < options_.max_rollbacks;
}

bool Guard::holds(const GuardState& state, std::int64_t step) const {
  return options_.acts() && state.last_trip > 0 && step < state.last_trip + options_.hold_steps;
}

GuardState after_rollback(const GuardState& stored, const GuardState& current, std::int64_t step,
                          std::int64_t passed_over) {
  GuardState state = stored;
  state.bad_steps = 0;
  state.first_bad = 0;
  state.last_trip = step;  // what follows has to prove itself before it is saved
  state.trips = current.trips;
  state.transients = current.transients;
  state.repairs = current.repairs;
  state.rollbacks = current.rollbacks + 1;
  state.passed_over = current.passed_over + passed_over;
  return state;
}

}  // namespace athanor::train
