// The step that a student is in: what all its ranks know of it, and what each sums up for the report.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "data/batch.hpp"
#include "distill/link/signal_source.hpp"
#include "nn/token_batch.hpp"
#include "train/objective.hpp"
#include "train/signal_plan.hpp"

namespace athanor::train {

/// Sums of a step over tokens; a student's ranks add theirs up at its end.
enum StudentSum : std::size_t {
  sum_ce,
  sum_kd,
  sum_hidden,
  sum_attention,
  sum_teacher_ce,
  sum_objective,  ///< what is minimised
  sum_gate,       ///< factors of alpha
  sum_held_out_ce,
  sum_held_out_kd,
  sum_gap,  ///< |payload's KL - full KL|, of measured tokens
  sum_gap_payload,
  sum_gap_full,
  sum_gap_tokens,
  num_student_sums
};
using StudentSums = std::array<double, num_student_sums>;

struct StudentStep {
  ObjectiveStep given;
  StepSettings settings;
  const distill::ReceivedStep* received = nullptr;  ///< nullptr: no teacher, labels alone
  double labels = 0.0;                              ///< valid ones of the global batch that are trained on
  double held_out_labels = 0.0;                     ///< and those that are only measured
  double attention_rows = 0.0;                      ///< what the attention term is divided by
  StudentSums sums{};

  const distill::Phase& phase() const { return *settings.numbers.phase; }
  bool uses_kd() const { return received != nullptr && phase().uses_kd(); }
  bool uses_hidden() const { return received != nullptr && phase().uses_hidden(); }
  bool uses_attention() const { return received != nullptr && phase().uses_attention(); }
  bool measures_gap() const { return received != nullptr && settings.measures_gap; }
  /// The optimizer divides by all valid labels; times this, sums become means over those trained on.
  double mean_factor() const { return labels > 0.0 ? given.valid_labels / labels : 0.0; }
};

/// A micro-batch, and the part that its tokens have.
struct StudentRows {
  const data::Batch& source;
  const nn::TokenBatch& batch;
  std::int64_t first_row = 0;  ///< of this rank's rows
  at::Tensor learns_BS;        ///< bool: has a label, and its sample is trained on
  at::Tensor held_out_BS;      ///< bool: has a label, and its sample is held out; undefined: none is
};

}  // namespace athanor::train
