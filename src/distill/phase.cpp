#include "distill/phase.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.hpp"

namespace athanor::distill {
namespace {

constexpr double fraction_tolerance = 1e-6;

void validate_phase(const Phase& phase, std::int64_t vocab) {
  if (!(std::isfinite(phase.fraction) && phase.fraction > 0.0)) {
    throw base::ConfigError(
        "phase {} has a fraction of {} (it is a share of the steps) give a number above 0", phase.name,
        phase.fraction);
  }
  if (!(std::isfinite(phase.learning_rate_factor) && phase.learning_rate_factor > 0.0)) {
    throw base::ConfigError(
        "phase {} has a learning-rate factor of {} (it multiplies the schedule) give a number "
        "above 0",
        phase.name, phase.learning_rate_factor);
  }
  validate(phase.ce, phase.name + ".ce");
  validate(phase.kd, phase.name + ".kd");
  validate(phase.hidden, phase.name + ".hidden");
  validate(phase.attention, phase.name + ".attention");
  validate(phase.balance, phase.name + ".balance");
  validate(phase.alpha);
  validate(phase.temperature);
  if (phase.uses_kd()) {
    if (phase.codec.kind == PayloadKind::none) {
      throw base::ConfigError(
          "phase {} weighs the teacher's logits but its codec sends none (the term has no value) "
          "choose a codec, or a kd weight of 0",
          phase.name);
    }
    validate(phase.codec, vocab);
    validate(phase.kd_loss, phase.codec.kind);
  }
}

Phase named(const Phase& base, std::string name, double fraction) {
  Phase phase = base;
  phase.name = std::move(name);
  phase.fraction = fraction;
  return phase;
}

std::vector<Phase> three_stage(const Phase& base) {
  const double weight =
      base.hidden.base + base.attention.base > 0.0 ? base.hidden.base + base.attention.base : 1.0;
  Phase features = named(base, "feature_alignment", 0.2);
  features.ce.base = features.kd.base = 0.0;
  features.hidden.base = feature_mix(weight).hidden;
  features.attention.base = feature_mix(weight).attention;
  Phase soft = named(base, "soft_label", 0.5);
  soft.hidden.base = soft.attention.base = 0.0;
  Phase joint = named(base, "joint", 0.3);
  joint.hidden.base = 0.1 * features.hidden.base;
  joint.attention.base = 0.1 * features.attention.base;
  return {features, soft, joint};
}

std::vector<Phase> kl_hidden_task(const Phase& base) {
  const double weight = base.hidden.base > 0.0 ? base.hidden.base : 1.0;
  Phase kl = named(base, "kl", 0.4);
  kl.hidden.base = kl.attention.base = 0.0;
  kl.alpha = {AlphaKind::constant, 1.0, 1.0};
  Phase hidden = kl;
  hidden.name = "hidden";
  hidden.fraction = 0.3;
  hidden.hidden.base = weight;
  Phase task = named(base, "task", 0.3);
  task.hidden.base = task.attention.base = 0.0;
  return {kl, hidden, task};
}

}  // namespace

void validate(const std::vector<Phase>& phases, std::int64_t vocab) {
  if (phases.empty()) {
    throw base::ConfigError("distill.phases is empty (a run needs a stage) name one phase or more");
  }
  double sum = 0.0;
  std::string fractions;
  for (const Phase& phase : phases) {
    validate_phase(phase, vocab);
    sum += phase.fraction;
    fractions += fmt::format("{}{} {}", fractions.empty() ? "" : ", ", phase.name, phase.fraction);
  }
  if (std::abs(sum - 1.0) > fraction_tolerance) {
    throw base::ConfigError(
        "the phases' fractions sum to {} ({}; together they are the whole run) make them sum to 1", sum,
        fractions);
  }
}

FeatureMix feature_mix(double weight) {
  const FeatureMix mix;
  return {mix.hidden * weight, mix.attention * weight};
}

std::vector<Phase> phase_preset(std::string_view name, const Phase& base) {
  if (name == "three_stage") {
    return three_stage(base);
  }
  if (name == "kl_hidden_task") {
    return kl_hidden_task(base);
  }
  throw base::ConfigError(
      "distill.phases = {} is no preset (there are two) choose three_stage or kl_hidden_task, or "
      "list the phases",
      name);
}

PhaseController::PhaseController(std::vector<Phase> phases, std::int64_t total_steps, std::int64_t vocab)
    : phases_(std::move(phases)) {
  validate(phases_, vocab);
  double behind = 0.0;
  std::int64_t first = 0;
  for (const Phase& phase : phases_) {
    behind += phase.fraction;
    const bool is_last = &phase == &phases_.back();
    const std::int64_t end =
        is_last ? total_steps
                : std::clamp<std::int64_t>(std::llround(behind * static_cast<double>(total_steps)), first,
                                           total_steps);
    steps_.push_back(end - first);
    first = end;
  }
}

PhaseController::Step PhaseController::begin_step(std::int64_t step) {
  ATHANOR_CHECK(step >= state_.first_step, "step {} is before the phase that began at {}", step,
                state_.first_step);
  const auto last = static_cast<std::int64_t>(phases_.size()) - 1;
  while (state_.index < last && step >= state_.first_step + steps_[static_cast<std::size_t>(state_.index)]) {
    state_.first_step += steps_[static_cast<std::size_t>(state_.index)];
    ++state_.index;
  }
  const auto index = static_cast<std::size_t>(state_.index);
  const Phase& phase = phases_[index];
  Step result;
  result.index = state_.index;
  result.phase = &phase;
  const std::int64_t n = result.step_in_phase = step - state_.first_step;
  result.progress =
      std::min(1.0, static_cast<double>(n) / static_cast<double>(std::max<std::int64_t>(steps_[index], 1)));
  result.alpha = phase.uses_kd() ? phase.alpha.at(result.progress) : 0.0;
  result.ce = (1.0 - result.alpha) * phase.ce.at(n);
  result.kd = result.alpha * phase.kd.at(n);
  result.hidden = phase.hidden.at(n);
  result.attention = phase.attention.at(n);
  result.balance = phase.balance.at(n);
  result.temperature = phase.temperature.at(n);
  return result;
}

void PhaseController::end_phase(std::int64_t step) {
  if (state_.index + 1 < static_cast<std::int64_t>(phases_.size())) {
    ++state_.index;
    state_.first_step = step + 1;
  }
}

void PhaseController::restore(const PhaseState& state) {
  if (state.index < 0 || state.index >= static_cast<std::int64_t>(phases_.size()) || state.first_step < 0) {
    throw base::ConfigError(
        "the checkpoint was in phase {} from step {} on (distill.phases has {} phases) keep the "
        "phases of the run that is resumed",
        state.index, state.first_step, phases_.size());
  }
  state_ = state;
}

}  // namespace athanor::distill
