#include "config/distill_gates.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "config/distill_plan.hpp"
#include "config/recording_plan.hpp"
#include "config/validate.hpp"
#include "distill/distill_loss.hpp"
#include "distill/signal_gap.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;
using distill::Phase;

void check_stopping(const RunConfig& config) {
  const DistillSection& section = config.distill;
  if (section.stopping.patience == 0) {
    return;
  }
  if (section.held_out == 0.0) {
    throw ConfigError(
        "distill.patience={} (distill.held_out=0: there is no held-out loss to watch) give a share of "
        "samples, "
        "such as distill.held_out=0.02, or distill.patience=0",
        section.stopping.patience);
  }
  if (config.train.eval_every == 0) {
    throw ConfigError(
        "distill.patience={} (train.eval_every=0: it counts evaluations) give train.eval_every, or "
        "distill.patience=0",
        section.stopping.patience);
  }
  const std::vector<Phase> phases = make_phases(config);
  if (std::none_of(phases.begin(), phases.end(), [](const Phase& phase) { return phase.uses_kd(); })) {
    throw ConfigError(
        "distill.patience={} (no stage of distill.phases={} has the teacher's distribution, whose held-out "
        "loss is watched) choose other stages, or distill.patience=0",
        section.stopping.patience, section.phases);
  }
}

void check_gates(const RunConfig& config) {
  const DistillSection& section = config.distill;
  if (section.difficulty.full_until >= section.difficulty.zero_from) {
    throw ConfigError(
        "distill.difficulty_full_until={} (distill.difficulty_zero_from={}: alpha falls from the first to "
        "the "
        "second) give two ascending numbers",
        section.difficulty.full_until, section.difficulty.zero_from);
  }
  const bool has_pairs =
      std::any_of(config.roles.begin() + 1, config.roles.end(), [&](const RoleConfig& role) {
        return !hidden_pairs(config, role).empty() || !attention_pairs(config, role).empty();
      });
  if (section.balance_losses && !has_pairs) {
    throw ConfigError(
        "distill.balance_losses=true (distill.hidden_layers={} and distill.attention_layers={}: there is no "
        "term to bring to another's size) choose layers, or distill.balance_losses=false",
        section.hidden_layers, section.attention_layers);
  }
}

void check_teacher_loss(const RunConfig& config) {
  if (config.distill.on_teacher_loss == OnTeacherLoss::labels && config.roles.size() > 2) {
    throw ConfigError(
        "distill.on_teacher_loss=labels ({} students: the first to end would end the job of the others) use "
        "stop, or one student",
        config.roles.size() - 1);
  }
}

}  // namespace

void validate_gates(const RunConfig& config) {
  check_gates(config);
  check_stopping(config);
  check_teacher_loss(config);
}

void validate_gap(const RunConfig& config, const std::vector<int>& ranks) {
  const DistillSection& section = config.distill;
  if (section.gap_every == 0) {
    return;
  }
  constexpr std::int64_t chunk = distill::DistillOptions{}.chunk_tokens;
  const std::int64_t positions = distill::num_measured(config.batch.seq, section.gap_fraction);
  const std::int64_t steps =
      (section.window + section.gap_every) / section.gap_every;  // measured in a window
  for (std::size_t i = 0; i < config.roles.size(); ++i) {
    const RoleConfig& role = config.roles[i];
    if (!runs(config, role)) {
      continue;
    }
    const std::int64_t samples = config.batch.global / resolve_dims(role, ranks[i]).dp;
    if (steps * samples * positions > chunk) {
      throw ConfigError(
          "distill.gap_fraction={} ({} tokens of {} samples of a rank of the {}, in {} of the steps that "
          "distill.window={} holds, are {} rows of logits: at most {} are kept) give a smaller share, a "
          "larger "
          "distill.gap_every, more data-parallel ranks, or distill.gap_every=0",
          section.gap_fraction, positions, samples, role.name, steps, section.window,
          steps * samples * positions, chunk);
    }
  }
  const std::vector<Phase> phases = make_phases(config);
  if (std::none_of(phases.begin(), phases.end(), [](const Phase& phase) { return phase.uses_kd(); })) {
    throw ConfigError(
        "distill.gap_every={} (no stage of distill.phases={} has the teacher's distribution) choose other "
        "stages, or distill.gap_every=0",
        section.gap_every, section.phases);
  }
}

}  // namespace athanor::config
