// What a role minimises, and what it does around its forward passes: the one place in which teacher and
// student differ from plain pretraining.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/batch.hpp"
#include "model/transformer.hpp"
#include "parallel/communicator.hpp"
#include "train/micro_batch.hpp"
#include "train/step_metrics.hpp"

namespace athanor::train {

/// Which step, and the counts of its global batch.
struct ObjectiveStep {
  std::int64_t step = 0;                                    ///< steps done before this one
  std::int64_t updates = 0;                                 ///< updates of the parameters so far
  double valid_labels = 0.0;                                ///< N of the global batch
  std::int64_t save_requests = 0;                           ///< ranks of the role that ask for a checkpoint
  std::int64_t stop_requests = 0;                           ///< ranks that ask to stop after this step
  const std::vector<data::Batch>* micro_batches = nullptr;  ///< of this replica, in the order of forward()
};

/// Called on every rank of the role: start once, when the job knows its first step; then by Trainer::step, in
/// this order: begin_step, trains, forward for each micro-batch, accepts_step, report, end_step.
class Objective {
 public:
  Objective() = default;
  virtual ~Objective() = default;
  Objective(const Objective&) = delete;
  Objective& operator=(const Objective&) = delete;

  /// `first_step`: steps done before this job. Opens the links to other roles; `while_waiting` is called
  /// again and again whenever one of them has to be waited for (saves in flight need moving along).
  virtual void start(std::int64_t first_step, const std::function<void()>& while_waiting) {
    static_cast<void>(first_step);
    static_cast<void>(while_waiting);
  }
  /// Moves what is under way between roles along; called while something else is waited for.
  virtual void progress() {}
  virtual void begin_step(const ObjectiveStep& step) = 0;
  /// Whether this step may change parameters; the same on all ranks of the role. If not, there are forward
  /// passes only, and nothing is counted as skipped.
  virtual bool trains() const { return true; }
  /// Multiplies the schedule's learning rate of this step.
  virtual double learning_rate_factor() const { return 1.0; }
  /// Runs embedding, blocks and head of micro-batch `index` of this replica; fills micro.objective (sum over
  /// the replica's tokens, or this rank's share of it, differentiable) and micro.aux. Returns the sum of CE
  /// over the replica's valid labels. Collective over tp and ep.
  virtual double forward(const model::Transformer& model, const model::ForwardContext& context,
                         std::int64_t index, MicroBatch& micro) = 0;
  /// After the last backward: whether the parameters may be updated; the same on all ranks of the role.
  virtual bool accepts_step() { return true; }
  /// Adds its figures to the step's metrics. Collective over `role`.
  virtual void report(StepMetrics& metrics, const parallel::Communicator& role) = 0;
  /// Which losses this step is made of: gradients of other stages have other sizes.
  virtual std::string stage() const { return ""; }
  /// Whether the forward passes of a step may be made once more before accepts_step(): they have no effect
  /// beyond their results.
  virtual bool can_repeat() const { return false; }
  /// The step is over; `skipped`: parameters were not changed.
  virtual void end_step(bool skipped) = 0;
  /// After the last step: completes what is under way with other roles.
  virtual void finish() {}
  /// This role goes on without the others for good: there are no checkpoints with them any more. The same on
  /// all ranks of the role.
  virtual bool is_alone() const { return false; }
  /// What outlives a step and can change a later one, as text for the checkpoint; restore() takes it back.
  virtual std::string state() const { return ""; }
  virtual void restore(const std::string&) {}
};

/// Plain pretraining: the cross-entropy of the labels.
class LanguageModelObjective : public Objective {
 public:
  void begin_step(const ObjectiveStep&) override {}
  bool can_repeat() const override { return true; }
  double forward(const model::Transformer& model, const model::ForwardContext& context, std::int64_t index,
                 MicroBatch& micro) override;
  void report(StepMetrics&, const parallel::Communicator&) override {}
  void end_step(bool) override {}
};

}  // namespace athanor::train
