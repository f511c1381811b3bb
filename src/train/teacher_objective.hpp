// The teacher's side of a distillation: it pretrains (or only runs), and its own forward pass is the signal.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "distill/link/teacher_link.hpp"
#include "parallel/point_to_point.hpp"
#include "parallel/process_grid.hpp"
#include "train/objective.hpp"
#include "train/signal_plan.hpp"

namespace athanor::train {

/// Cross-entropy of the labels; while the logits are there they are encoded and sent to all students,
/// micro-batch by micro-batch, with the layers' states that they ask for.
class TeacherObjective : public Objective {
 public:
  /// `model`, `grid` and `wire` outlive this object.
  TeacherObjective(std::shared_ptr<SignalOptions> options, const model::Transformer& model,
                   const parallel::ProcessGrid& grid, parallel::PointToPoint& wire);
  ~TeacherObjective() override;

  void start(std::int64_t first_step, const std::function<void()>& while_waiting) override;
  void progress() override;
  void begin_step(const ObjectiveStep& step) override;
  double forward(const model::Transformer& model, const model::ForwardContext& context, std::int64_t index,
                 MicroBatch& micro) override;
  void report(StepMetrics& metrics, const parallel::Communicator& role) override;
  void end_step(bool skipped) override;
  void finish() override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::train
