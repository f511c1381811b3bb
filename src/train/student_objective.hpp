// The student's side of a distillation: labels, the teacher's distribution, and states of its layers.
//
// L = (1 - a) CE + a KD + hidden Hidden + attention Attention + balance Balance(student)   (design section 6)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"
#include "train/objective.hpp"
#include "train/signal_plan.hpp"
#include "train/signal_source_factory.hpp"
#include "train/student_options.hpp"

namespace athanor::train {

class StudentObjective : public Objective {
 public:
  /// Adds the projections of hidden states to `parameters`. `grid` outlives this object.
  StudentObjective(std::shared_ptr<SignalOptions> options, const StudentOptions& student,
                   parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid,
                   SignalSourceFactory make_source);
  ~StudentObjective() override;

  void start(std::int64_t first_step, const std::function<void()>& while_waiting) override;
  void progress() override;
  /// Throws TeacherLost when the teacher does not send in time and the job is to end then.
  void begin_step(const ObjectiveStep& step) override;
  /// False once the student has stopped early, and for a batch whose samples are all held out.
  bool trains() const override;
  /// That of the stage.
  double learning_rate_factor() const override;
  /// The name of the phase.
  std::string stage() const override;
  double forward(const model::Transformer& model, const model::ForwardContext& context, std::int64_t index,
                 MicroBatch& micro) override;
  bool accepts_step() override;
  void report(StepMetrics& metrics, const parallel::Communicator& role) override;
  void end_step(bool skipped) override;
  bool is_alone() const override;
  std::string state() const override;
  void restore(const std::string& state) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::train
