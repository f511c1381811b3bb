// The stages of a distillation: which losses, weights, payload and temperatures apply when.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "distill/attention_loss.hpp"
#include "distill/codec.hpp"
#include "distill/hidden_loss.hpp"
#include "distill/kd_options.hpp"
#include "distill/schedules.hpp"

namespace athanor::distill {

/// One stage. L = (1 - a) ce CE + a kd KD + hidden Hidden + attention Attention + balance Balance(student),
/// with a and the weights scheduled over the phase's own steps.
struct Phase {
  std::string name;
  double fraction = 1.0;  ///< of the run's steps, above 0
  WeightSchedule ce;
  WeightSchedule kd;
  WeightSchedule hidden{.base = 0.0};
  WeightSchedule attention{.base = 0.0};
  WeightSchedule balance;
  KdOptions kd_loss;
  HiddenLossKind hidden_loss = HiddenLossKind::mse;
  AttentionLossKind attention_loss = AttentionLossKind::kl;
  AlphaSchedule alpha;
  TemperatureSchedule temperature;
  CodecOptions codec;
  double learning_rate_factor = 1.0;

  bool uses_kd() const { return kd.base > 0.0; }
  bool uses_hidden() const { return hidden.base > 0.0; }
  bool uses_attention() const { return attention.base > 0.0; }
};

/// Throws ConfigError naming the phase when a number is out of range, the codec does not determine the loss,
/// the list is empty or its fractions do not sum to 1 (within 1e-6).
void validate(const std::vector<Phase>& phases, std::int64_t vocab);

/// Presets, each from `base`, whose losses, codec and schedules are kept:
///   "three_stage"      feature_alignment 20 % (hidden 0.8 and attention 0.2 of the weight, no labels, no
///   teacher
///                      logits), soft_label 50 % (CE and KD), joint 30 % (all; the features at a tenth of
///                      their weight hold what was learnt first)
///   "kl_hidden_task"   kl 40 % (KD alone), hidden 30 % (KD and hidden states), task 30 % (CE and KD)
/// Throws ConfigError naming them for another name.
std::vector<Phase> phase_preset(std::string_view name, const Phase& base);

/// The feature terms of `weight` in the usual mix: 0.8 hidden states, 0.2 attention.
struct FeatureMix {
  double hidden = 0.8;
  double attention = 0.2;
};
FeatureMix feature_mix(double weight);

/// Where a run is; part of the checkpoint.
struct PhaseState {
  std::int64_t index = 0;
  std::int64_t first_step = 0;  ///< of the phase
  bool operator==(const PhaseState&) const = default;
};

/// Which phase a step belongs to. A phase has the steps of its fraction (boundaries are rounded, none is
/// lost); the last one goes on to the end. A phase can be ended early by reduced values of earlier steps,
/// which moves what follows forward.
class PhaseController {
 public:
  /// The weights and numbers of one step.
  struct Step {
    std::int64_t index = 0;
    const Phase* phase = nullptr;
    std::int64_t step_in_phase = 0;
    double progress = 0.0;  ///< share of the phase's steps that is behind
    double alpha = 0.0;
    double ce = 0.0;  ///< (1 - alpha) * weight of CE
    double kd = 0.0;  ///< alpha * weight of KD; 0 and ce = its weight when the phase has no KD
    double hidden = 0.0;
    double attention = 0.0;
    double balance = 0.0;
    double temperature = 1.0;  ///< of tokens without a domain of their own
  };

  /// Throws ConfigError as validate() does.
  PhaseController(std::vector<Phase> phases, std::int64_t total_steps, std::int64_t vocab);

  /// Moves on to the phase of `step` and returns its numbers. Steps must not go back.
  Step begin_step(std::int64_t step);
  /// The phase ends with `step`: the next one begins at step + 1. No effect in the last one.
  void end_phase(std::int64_t step);

  const std::vector<Phase>& phases() const { return phases_; }
  /// Planned steps of a phase.
  std::int64_t num_steps(std::size_t phase) const { return steps_[phase]; }
  const PhaseState& state() const { return state_; }
  void restore(const PhaseState& state);

 private:
  std::vector<Phase> phases_;
  std::vector<std::int64_t> steps_;
  PhaseState state_;
};

}  // namespace athanor::distill
