// What moves a student's losses while it runs: gates of alpha, the balancer of terms, early stopping. All of
// it follows from values of earlier steps that were reduced over the student's ranks, and all of its state is
// in the checkpoint.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

#include "distill/gates.hpp"
#include "train/student_options.hpp"
#include "train/student_step.hpp"

namespace athanor::train {

/// Values of a step, reduced over the role.
struct StudentMeans {
  double ce = 0.0;          ///< means over the tokens that are trained on; 0 for a term that does not apply
  double teacher_ce = 0.0;  ///< of the same tokens; NaN without a teacher
  double kd = 0.0;
  double hidden = 0.0;
  double attention = 0.0;
  double held_out_kd_sum = 0.0;  ///< over StudentStep::held_out_labels tokens
};

class StudentGates {
 public:
  /// Throws ConfigError for what the gates refuse.
  explicit StudentGates(const GateOptions& options);

  /// Factors of alpha, of the teacher's cross-entropy's type [N]; undefined without a gate.
  at::Tensor alpha_factors(const at::Tensor& teacher_ce_N) const;
  /// Factors of the weights of hidden states and attention maps; `has_kd`: the terms are brought to the size
  /// of the distribution's, otherwise to that of the cross-entropy.
  struct TermFactors {
    double hidden = 1.0;
    double attention = 1.0;
  };
  TermFactors term_factors(bool has_kd) const;
  double maturity() const { return maturity_.factor(); }
  /// The student has stopped early: it is not trained any more.
  bool has_stopped() const { return stopped_at_ >= 0; }
  std::int64_t stopped_at() const { return stopped_at_; }  ///< steps done then; -1: it has not

  /// `begins_measure`: the held-out loss of this step cannot be compared with those before (another stage or
  /// temperature). Returns whether the student stops after this step.
  bool update(const StudentStep& step, const StudentMeans& means, bool begins_measure);

  /// The whole state as text, and back. Throws CheckpointError when it cannot be read.
  std::string state() const;
  void restore(const std::string& state);

 private:
  bool evaluate(std::int64_t steps_done);

  GateOptions options_;
  distill::MaturityGate maturity_;
  distill::DifficultyGate difficulty_;
  distill::LossBalancer to_kd_;  // terms: hidden states, attention
  distill::LossBalancer to_ce_;
  distill::EarlyStopping stopping_;
  double held_out_sum_ = 0.0;  // since the last evaluation
  std::int64_t held_out_labels_ = 0;
  std::int64_t stopped_at_ = -1;
};

}  // namespace athanor::train
