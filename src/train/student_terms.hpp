// The terms of a student's loss, made of what its teacher sent.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "distill/distill_loss.hpp"
#include "distill/hidden_loss.hpp"
#include "model/transformer.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"
#include "train/signal_plan.hpp"
#include "train/student_options.hpp"
#include "train/student_step.hpp"

namespace athanor::train {

class StudentTerms {
 public:
  /// Adds the projections of hidden states to `parameters`. `grid` outlives this object.
  StudentTerms(std::shared_ptr<SignalOptions> options, const StudentOptions& student,
               parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);

  /// Takes the signals of the step over; they are valid until the next one.
  void begin_step(const StudentStep& step);
  /// The layers whose states this step compares.
  model::LayerCapture make_capture(const StudentStep& step) const;
  /// The teacher's distribution of the rows.
  distill::TeacherSignal signal(const StudentStep& step, const StudentRows& rows) const;
  /// The teacher's cross-entropy of the rows' tokens, accumulation type [rows * positions].
  at::Tensor teacher_ce(const StudentStep& step, const StudentRows& rows) const;
  /// The teacher's logits [rows, measured positions, v] of a step that measures the gap, and these positions.
  at::Tensor gap_logits(const StudentStep& step, const StudentRows& rows) const;
  at::Tensor gap_positions(const StudentRows& rows) const;
  /// Labels, weights and temperatures of the rows' tokens. `alpha_factor_N` undefined: 1.
  distill::TokenTerms token_terms(const StudentStep& step, const StudentRows& rows,
                                  const at::Tensor& alpha_factor_N) const;
  /// Weighted by `factor`, ready to be added to the objective; undefined when the step has no such term. Adds
  /// to sum_hidden.
  at::Tensor hidden(StudentStep& step, const StudentRows& rows, const model::LayerCapture& capture,
                    double factor) const;
  /// Likewise; adds to sum_attention. Collective over tp.
  at::Tensor attention(StudentStep& step, const StudentRows& rows, const model::LayerCapture& capture,
                       double factor) const;
  at::ScalarType accumulation() const { return parallel::accumulation_type(student_.type); }
  bool has_hidden() const { return hidden_.has_value(); }

 private:
  const StudentSignals& signals() const { return options_->students[student_.index]; }
  const parallel::Communicator& tp() const { return grid_->comm(parallel::Axis::tensor); }
  at::Tensor rows_of(const StudentStep& step, const StudentRows& rows, const std::string& name,
                     at::ScalarType type) const;
  std::vector<at::Tensor> teacher_states(const StudentStep& step, const StudentRows& rows) const;

  std::shared_ptr<SignalOptions> options_;
  StudentOptions student_;
  const parallel::ProcessGrid* grid_;
  std::optional<distill::HiddenTerm> hidden_;
  at::Tensor head_vD_;  // of a frozen teacher: sent once
};

}  // namespace athanor::train
