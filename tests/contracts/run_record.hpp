// A short training run at some layout and everything contract 1 compares of it.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "support/synthetic_batches.hpp"
#include "train/trainer.hpp"

namespace athanor::tests {

/// How the ranks of a run share the work.
struct Layout {
  int ranks = 1;
  int tp = 1;
  int ep = 1;
  int accumulation = 1;  ///< micro-batches of a step
  int zero = 1;

  std::string describe() const {
    return "ranks " + std::to_string(ranks) + " tp " + std::to_string(tp) + " ep " + std::to_string(ep) +
           " accumulation " + std::to_string(accumulation) + " zero " + std::to_string(zero);
  }
};

/// What is trained; the same on every layout.
struct Case {
  std::string name;
  train::RoleOptions role;
  SyntheticData data;
  int steps = 12;
  bool equal_micro_steps_only = false;  ///< balance_counts = micro_step: only layouts without accumulation
  /// Forces every choice to the experts [0, top_k) + this function of the sample; unset: routed normally.
  bool cold_experts = false;
};

struct RunRecord {
  std::vector<train::StepMetrics> steps;
  std::map<std::string, at::Tensor> parameters;  ///< whole tensors, f64
  std::map<std::string, at::Tensor> exp_avg;
  std::map<std::string, at::Tensor> exp_avg_sq;
};

/// Trains `test` at `layout` on the ranks of `role` (of layout.ranks). Collective over `role`; the record is
/// the same on all its ranks.
RunRecord run_layout(const Case& test, const Layout& layout, const parallel::Communicator& role);

/// The trainer that run_layout uses.
train::TrainerOptions trainer_options(const Case& test, const Layout& layout);
/// One step of `test` at the trainer's layout; the step number is the trainer's own.
train::StepMetrics train_step(const Case& test, train::Trainer& trainer);
/// Parameters and moments of a trainer as whole tensors. Collective over `role`.
RunRecord collect_record(train::Trainer& trainer, const parallel::Communicator& role);

/// Copies rank `root`'s record to all ranks of `comm`. Collective.
RunRecord broadcast_record(const RunRecord& record, int root, const parallel::Communicator& comm);

}  // namespace athanor::tests
