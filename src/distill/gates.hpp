// What moves the teacher's share and the terms' weights by what was measured. Everything here is a function
// of values of earlier steps that were reduced over all ranks of the student (or, for difficulty, of what the
// packet says of the token), so it is the same on every layout and after a restart. Each state is part of the
// checkpoint.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace athanor::distill {

/// Lets the teacher count only as far as it is ahead of the student: clip((CE_student - CE_teacher) / margin,
/// 0, 1) of running means over the same tokens.
struct MaturityOptions {
  double margin = 0.5;  ///< nats at which the teacher counts fully
  double memory = 0.9;  ///< of the running means, per step
};
struct MaturityState {
  double student_ce = 0.0;
  double teacher_ce = 0.0;
  std::int64_t steps = 0;
  bool operator==(const MaturityState&) const = default;
};
class MaturityGate {
 public:
  /// Throws ConfigError for a margin that is not positive or a memory outside [0, 1).
  explicit MaturityGate(const MaturityOptions& options);
  /// Factor of alpha; 0 before the first update (nothing is known of the teacher).
  double factor() const;
  /// Mean CE of a step's tokens, reduced over all ranks. Non-finite values change nothing.
  void update(double student_ce, double teacher_ce);
  const MaturityState& state() const { return state_; }
  void restore(const MaturityState& state) { state_ = state; }

 private:
  MaturityOptions options_;
  MaturityState state_;
};

/// Lets the teacher count less where the label is hard for itself: 1 up to `full_until` times the running
/// mean of its CE, 0 from `zero_from` times, linear between.
struct DifficultyOptions {
  double full_until = 1.5;
  double zero_from = 4.0;
  double memory = 0.9;
};
struct DifficultyState {
  double teacher_ce = 0.0;
  std::int64_t steps = 0;
  bool operator==(const DifficultyState&) const = default;
};
class DifficultyGate {
 public:
  /// Throws ConfigError unless 0 < full_until < zero_from and the memory is in [0, 1).
  explicit DifficultyGate(const DifficultyOptions& options);
  /// Factors of alpha for the teacher's CE of each token, of its type; 1 before the first update.
  at::Tensor factors(const at::Tensor& teacher_ce_N) const;
  /// The teacher's mean CE of a step, reduced over all ranks. Non-finite values change nothing.
  void update(double teacher_ce);
  const DifficultyState& state() const { return state_; }
  void restore(const DifficultyState& state) { state_ = state; }

 private:
  DifficultyOptions options_;
  DifficultyState state_;
};

/// Brings terms to the size of a reference term: factor_i = mean(reference) / mean(term i), within [1/limit,
/// limit], from running means of globally reduced values.
struct BalancerOptions {
  double memory = 0.9;
  double limit = 100.0;
};
struct BalancerState {
  std::vector<double> mean;         ///< the reference, then the terms
  std::vector<std::int64_t> steps;  ///< updates of each
  bool operator==(const BalancerState&) const = default;
};
class LossBalancer {
 public:
  /// Throws ConfigError for a memory outside [0, 1) or a limit below 1.
  LossBalancer(const BalancerOptions& options, std::size_t num_terms);
  /// 1 until both the reference and the term were seen.
  double factor(std::size_t term) const;
  /// Mean value of the reference (index 0) and of each term (1 ...) of a step. A value that is not finite or
  /// not positive (a term that did not apply) changes nothing.
  void update(const std::vector<double>& values);
  const BalancerState& state() const { return state_; }
  /// Throws InternalError when the state is of another number of terms.
  void restore(const BalancerState& state);

 private:
  BalancerOptions options_;
  BalancerState state_;
};

/// Stops (or ends a phase) when the held-out distillation loss has not improved for `patience` evaluations.
struct EarlyStoppingOptions {
  std::int64_t patience = 0;  ///< 0: never
  double min_improvement = 0.0;
};
struct EarlyStoppingState {
  double best = 0.0;
  std::int64_t best_step = -1;  ///< -1: nothing was evaluated yet
  std::int64_t bad = 0;         ///< evaluations since the best
  bool operator==(const EarlyStoppingState&) const = default;
};
class EarlyStopping {
 public:
  /// Throws ConfigError for negative numbers.
  explicit EarlyStopping(const EarlyStoppingOptions& options);
  /// A held-out loss, reduced over all ranks. A NaN is no improvement. True: stop.
  bool update(std::int64_t step, double loss);
  const EarlyStoppingState& state() const { return state_; }
  void restore(const EarlyStoppingState& state) { state_ = state; }

 private:
  EarlyStoppingOptions options_;
  EarlyStoppingState state_;
};

}  // namespace athanor::distill
