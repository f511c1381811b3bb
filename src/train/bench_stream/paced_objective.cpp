#include "train/bench_stream/paced_objective.hpp"

#include <utility>

namespace athanor::train {

PacedObjective::PacedObjective(std::unique_ptr<Objective> linked, std::unique_ptr<Objective> alone)
    : linked_(std::move(linked)), alone_(std::move(alone)), current_(linked_.get()) {}

void PacedObjective::set_next(std::int64_t step, bool is_alone) {
  step_ = step;
  current_ = is_alone && alone_ ? alone_.get() : linked_.get();
}

void PacedObjective::start(std::int64_t first_step, const std::function<void()>& while_waiting) {
  linked_->start(first_step, while_waiting);
}

void PacedObjective::begin_step(const ObjectiveStep& step) {
  ObjectiveStep numbered = step;
  numbered.step = step_;
  current_->begin_step(numbered);
}

double PacedObjective::forward(const model::Transformer& model, const model::ForwardContext& context,
                               std::int64_t index, MicroBatch& micro) {
  return current_->forward(model, context, index, micro);
}

void PacedObjective::report(StepMetrics& metrics, const parallel::Communicator& role) {
  current_->report(metrics, role);
}

}  // namespace athanor::train
