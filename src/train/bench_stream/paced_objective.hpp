// A role's objective in a benchmark that says which step comes next, and leaves the link out of some.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "train/objective.hpp"

namespace athanor::train {

/// Runs steps of `linked` or of `alone` under numbers that it is told: those of the link count only the steps
/// that went over it.
class PacedObjective final : public Objective {
 public:
  /// Without `alone` all steps are those of `linked`.
  PacedObjective(std::unique_ptr<Objective> linked, std::unique_ptr<Objective> alone);

  /// Between steps: the next one is number `step`, of `alone` if `is_alone` and there is one.
  void set_next(std::int64_t step, bool is_alone);

  void start(std::int64_t first_step, const std::function<void()>& while_waiting) override;
  void progress() override { linked_->progress(); }
  void begin_step(const ObjectiveStep& step) override;
  bool trains() const override { return current_->trains(); }
  double learning_rate_factor() const override { return current_->learning_rate_factor(); }
  double forward(const model::Transformer& model, const model::ForwardContext& context, std::int64_t index,
                 MicroBatch& micro) override;
  bool accepts_step() override { return current_->accepts_step(); }
  void report(StepMetrics& metrics, const parallel::Communicator& role) override;
  void end_step(bool skipped) override { current_->end_step(skipped); }
  void finish() override { linked_->finish(); }

 private:
  std::unique_ptr<Objective> linked_;
  std::unique_ptr<Objective> alone_;
  Objective* current_;
  std::int64_t step_ = 0;
};

}  // namespace athanor::train
