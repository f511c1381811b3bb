#include "config/search_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "config/distill_plan.hpp"
#include "config/phase_settings.hpp"
#include "config/value_text.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;

// Every trial would have the same loss.
void check_temperature_counts(const RunConfig& config) {
  if (config.distill.kd.loss == distill::KdLoss::logit_mse) {
    throw ConfigError(
        "distill.search=temperature (distill.loss=logit_mse does not depend on the temperature) choose "
        "another "
        "loss");
  }
  if (!config.distill.temperature.by_domain.empty()) {
    throw ConfigError(
        "distill.search=temperature (distill.temperature_by_domain={} keeps the temperatures of these "
        "domains) "
        "leave it out",
        to_text(config.distill.temperature.by_domain));
  }
  if (phase_settings_change(config, "temperature") || phase_settings_change(config, "temperature_step") ||
      phase_settings_change(config, "loss")) {
    throw ConfigError(
        "distill.search=temperature (distill.phase_settings={} gives stages a temperature or a loss of their "
        "own) leave those out",
        config.distill.phase_settings);
  }
  const std::vector<distill::Phase> phases = make_phases(make_trial(config, 0));
  if (std::none_of(phases.begin(), phases.end(),
                   [](const distill::Phase& phase) { return phase.uses_kd(); })) {
    throw ConfigError(
        "distill.search=temperature (no stage of distill.phases={} uses the teacher's distribution) choose "
        "other stages",
        config.distill.phases);
  }
}

void check_trials_can_run(const RunConfig& config) {
  const DistillSection& section = config.distill;
  if (config.data.valid.empty()) {
    throw ConfigError(
        "distill.search=temperature (data.valid is empty: trials are ranked by their loss on it) set "
        "data.valid");
  }
  if (section.temperature.minimum >= highest_trial_temperature) {
    throw ConfigError("distill.temperature_min={} (distill.search goes from there to {}) use a lower one",
                      section.temperature.minimum, highest_trial_temperature);
  }
  if (config.run.resume != "auto") {
    throw ConfigError(
        "run.resume={} (trials start from teacher.init and student.init, and those that are done are not run "
        "again) leave it out",
        config.run.resume);
  }
  for (const RoleConfig& role : config.roles) {
    if (role.optim.warmup_steps > section.trial_steps) {
      throw ConfigError(
          "{}: optim.warmup_steps={} (distill.trial_steps={}: the warm-up would not end) use at most that, "
          "or "
          "longer trials",
          role.name, role.optim.warmup_steps, section.trial_steps);
    }
  }
}

}  // namespace

std::vector<double> trial_temperatures(const RunConfig& config) {
  const double lowest = config.distill.temperature.minimum;
  const auto last = static_cast<double>(config.distill.trials - 1);
  std::vector<double> temperatures;
  for (std::int64_t i = 0; i < config.distill.trials; ++i) {
    const double exact = lowest * std::pow(highest_trial_temperature / lowest, static_cast<double>(i) / last);
    temperatures.push_back(std::max(lowest, std::round(exact * 1e4) / 1e4));
  }
  return temperatures;
}

std::string trial_name(std::size_t index) {
  return fmt::format("{:02}", index + 1);
}

RunConfig make_trial(const RunConfig& config, std::size_t index) {
  RunConfig trial = config;
  trial.run.dir = config.run.dir + "/trials/" + trial_name(index);
  trial.train.steps = config.distill.trial_steps;
  trial.train.eval_every = 0;
  trial.checkpoint = CheckpointSection{};  // a trial saves nothing
  DistillSection& section = trial.distill;
  const DistillSection defaults;
  section.search = SearchKind::none;
  section.trials = defaults.trials;
  section.trial_steps = defaults.trial_steps;
  section.temperature.first = trial_temperatures(config).at(index);
  section.temperature.step_change = 0.0;
  section.stopping.patience = 0;  // trials of different lengths could not be compared
  section.on_teacher_loss = OnTeacherLoss::stop;
  return trial;
}

void validate_search(const RunConfig& config) {
  if (config.distill.search == SearchKind::none) {
    return;
  }
  check_trials_can_run(config);
  check_temperature_counts(config);
}

}  // namespace athanor::config
