#include "distill/gates.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::distill {
namespace {

void check_memory(double memory, std::string_view what) {
  if (!(memory >= 0.0 && memory < 1.0)) {
    throw base::ConfigError(
        "the memory {} of the {} is out of range (it is the old mean's share) give 0 to below 1", memory,
        what);
  }
}

/// The first value as it is, later ones mixed in.
void mix_in(double& mean, std::int64_t steps, double value, double memory) {
  mean = steps == 0 ? value : memory * mean + (1.0 - memory) * value;
}

}  // namespace

MaturityGate::MaturityGate(const MaturityOptions& options) : options_(options) {
  check_memory(options.memory, "maturity gate");
  if (!(std::isfinite(options.margin) && options.margin > 0.0)) {
    throw base::ConfigError(
        "the margin {} of the maturity gate is out of range (it is a difference of losses) give a "
        "number above 0",
        options.margin);
  }
}

double MaturityGate::factor() const {
  if (state_.steps == 0) {
    return 0.0;
  }
  return std::clamp((state_.student_ce - state_.teacher_ce) / options_.margin, 0.0, 1.0);
}

void MaturityGate::update(double student_ce, double teacher_ce) {
  if (!std::isfinite(student_ce) || !std::isfinite(teacher_ce)) {
    return;
  }
  mix_in(state_.student_ce, state_.steps, student_ce, options_.memory);
  mix_in(state_.teacher_ce, state_.steps, teacher_ce, options_.memory);
  ++state_.steps;
}

DifficultyGate::DifficultyGate(const DifficultyOptions& options) : options_(options) {
  check_memory(options.memory, "difficulty gate");
  if (!(options.full_until > 0.0 && options.full_until < options.zero_from &&
        std::isfinite(options.zero_from))) {
    throw base::ConfigError(
        "the difficulty gate goes from {} to {} (multiples of the mean loss) give two ascending "
        "numbers above 0",
        options.full_until, options.zero_from);
  }
}

at::Tensor DifficultyGate::factors(const at::Tensor& teacher_ce_N) const {
  if (state_.steps == 0 || state_.teacher_ce <= 0.0) {
    return at::ones_like(teacher_ce_N);
  }
  const double width = (options_.zero_from - options_.full_until) * state_.teacher_ce;
  return ((options_.zero_from * state_.teacher_ce - teacher_ce_N) / width).clamp(0.0, 1.0);
}

void DifficultyGate::update(double teacher_ce) {
  if (std::isfinite(teacher_ce)) {
    mix_in(state_.teacher_ce, state_.steps, teacher_ce, options_.memory);
    ++state_.steps;
  }
}

LossBalancer::LossBalancer(const BalancerOptions& options, std::size_t num_terms) : options_(options) {
  check_memory(options.memory, "loss balancer");
  if (!(options.limit >= 1.0)) {
    throw base::ConfigError(
        "the limit {} of the loss balancer is out of range (factors lie between 1/limit and limit) "
        "give 1 or more",
        options.limit);
  }
  state_.mean.assign(num_terms + 1, 0.0);
  state_.steps.assign(num_terms + 1, 0);
}

double LossBalancer::factor(std::size_t term) const {
  const std::size_t i = term + 1;
  ATHANOR_CHECK(i < state_.mean.size(), "term {} of {}", term, state_.mean.size() - 1);
  if (state_.steps[0] == 0 || state_.steps[i] == 0) {
    return 1.0;
  }
  return std::clamp(state_.mean[0] / state_.mean[i], 1.0 / options_.limit, options_.limit);
}

void LossBalancer::update(const std::vector<double>& values) {
  ATHANOR_CHECK(values.size() == state_.mean.size(), "{} values for {} terms", values.size(),
                state_.mean.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i]) && values[i] > 0.0) {
      mix_in(state_.mean[i], state_.steps[i], values[i], options_.memory);
      ++state_.steps[i];
    }
  }
}

void LossBalancer::restore(const BalancerState& state) {
  ATHANOR_CHECK(state.mean.size() == state_.mean.size() && state.steps.size() == state_.steps.size(),
                "a balancer of {} terms is restored from one of {}", state_.mean.size(), state.mean.size());
  state_ = state;
}

EarlyStopping::EarlyStopping(const EarlyStoppingOptions& options) : options_(options) {
  if (options.patience < 0 || !(options.min_improvement >= 0.0)) {
    throw base::ConfigError(
        "early stopping with a patience of {} and an improvement of {} is out of range (a number of "
        "evaluations and a loss) give 0 or more",
        options.patience, options.min_improvement);
  }
}

bool EarlyStopping::update(std::int64_t step, double loss) {
  const bool improved =
      state_.best_step < 0 ? std::isfinite(loss) : loss < state_.best - options_.min_improvement;
  if (improved) {
    state_ = {loss, step, 0};
  } else {
    ++state_.bad;
  }
  return options_.patience > 0 && state_.bad >= options_.patience;
}

}  // namespace athanor::distill
