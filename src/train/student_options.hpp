// What one student is told of its distillation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include <c10/core/ScalarType.h>

#include "distill/gates.hpp"
#include "distill/hidden_loss.hpp"
#include "model/transformer_config.hpp"
#include "train/teacher_loss.hpp"

namespace athanor::train {

/// What moves a student's losses by what was measured.
struct GateOptions {
  bool uses_maturity = false;
  distill::MaturityOptions maturity;
  bool uses_difficulty = false;
  distill::DifficultyOptions difficulty;
  bool balances_losses = false;  ///< hidden and attention terms at the size of the distribution's
  distill::BalancerOptions balancer;
  distill::EarlyStoppingOptions stopping;
  std::int64_t evaluate_every = 0;  ///< steps between two looks at the held-out loss; 0: never
};

struct StudentOptions {
  std::size_t index = 0;  ///< in SignalOptions::students
  model::TransformerConfig model;
  at::ScalarType type = at::kFloat;  ///< compute type
  distill::HiddenOptions hidden;
  GateOptions gates;
  double held_out = 0.0;  ///< share of samples that the student is measured on and not trained on
  OnTeacherLoss on_teacher_loss = OnTeacherLoss::stop;
  /// Called by the student's first rank when it goes on without its teacher.
  std::function<void()> say_farewell{};
};

}  // namespace athanor::train
