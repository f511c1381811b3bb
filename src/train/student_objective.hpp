// The student's side of a distillation: labels, the teacher's distribution, and states of its layers.
//
// L = (1 - a) CE + a KD + hidden Hidden + attention Attention + balance Balance(student)   (design section 6)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "distill/attention_loss.hpp"
#include "distill/gates.hpp"
#include "distill/hidden_loss.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/point_to_point.hpp"
#include "parallel/process_grid.hpp"
#include "train/objective.hpp"
#include "train/signal_plan.hpp"

namespace athanor::train {

struct StudentOptions {
  std::size_t index = 0;  ///< in SignalOptions::students
  model::TransformerConfig model;
  at::ScalarType type = at::kFloat;  ///< compute type
  distill::HiddenOptions hidden;
  bool uses_maturity_gate = false;
  distill::MaturityOptions maturity;
};

class StudentObjective : public Objective {
 public:
  /// Adds the projections of hidden states to `parameters`. `grid` and `wire` outlive this object.
  StudentObjective(std::shared_ptr<SignalOptions> options, const StudentOptions& student,
                   parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid,
                   parallel::PointToPoint& wire);
  ~StudentObjective() override;

  void start(std::int64_t first_step, const std::function<void()>& while_waiting) override;
  void progress() override;
  void begin_step(const ObjectiveStep& step) override;
  double forward(const model::Transformer& model, const model::ForwardContext& context, std::int64_t index,
                 MicroBatch& micro) override;
  bool accepts_step() override;
  void report(StepMetrics& metrics, const parallel::Communicator& role) override;
  void end_step(bool skipped) override;
  std::string state() const override;
  void restore(const std::string& state) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::train
