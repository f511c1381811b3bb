// One role's training step: model, optimizer and balancing state over a process grid.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/precision.hpp"
#include "data/batch.hpp"
#include "data/sampler.hpp"
#include "device/device.hpp"
#include "model/transformer.hpp"
#include "optim/loss_scaler.hpp"
#include "optim/sharded_optimizer.hpp"
#include "parallel/process_grid.hpp"
#include "train/guard.hpp"
#include "train/step_metrics.hpp"

namespace athanor::train {

/// Everything that makes one role: the model and how its ranks share the work.
struct RoleOptions {
  std::string name = "teacher";
  parallel::RoleKind kind = parallel::RoleKind::teacher;
  model::TransformerConfig model;
  int tp = 1;
  int ep = 1;
  optim::OptimOptions optim;
  base::ComputeType compute = base::ComputeType::f32;
  optim::GradientWire grad_wire;
  std::int64_t micro_batch = 0;  ///< sequences of one micro-batch of a replica; 0: global / dp
  bool frozen = false;           ///< forward passes only: no gradients, no optimizer state, nothing changes
};

struct TrainerOptions {
  RoleOptions role;
  std::int64_t global_batch = 8;  ///< sequences of a step
  std::int64_t seq = 256;         ///< tokens of a sequence
  std::int64_t total_steps = 0;   ///< for the learning-rate schedule
  std::uint64_t seed = 0;
  GuardOptions guard;
  device::Device device;  ///< of parameters, gradients and activations
};

/// All that outlives a step and can change a later one, except parameters and moments, which the optimizer
/// owns: with those it is what a checkpoint holds (train/state_dict.hpp).
struct TrainState {
  std::int64_t step = 0;     ///< steps done, skipped ones included
  std::int64_t tokens = 0;   ///< valid labels seen
  std::int64_t updates = 0;  ///< AdamW's step count
  optim::LossScaleState loss_scale;
  moe::BalanceState balance;
  data::DataCursor cursor;
  std::string objective;  ///< Objective::state()
  GuardState guard;
};

class StepSums;
struct StepAttempt;
class Objective;
struct ObjectiveStep;

/// Makes a role's objective when its model is there and before its optimizer: it may add parameters, which
/// are trained and saved with the model.
using ObjectiveFactory = std::function<std::unique_ptr<Objective>(
    const model::Transformer& model, parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid)>;

/// What this rank asks of all ranks of its role. They agree by the reductions that open and close a step.
struct StepRequests {
  bool save = false;             ///< a checkpoint after this step (StepMetrics::save_requests)
  std::function<bool()> stop{};  ///< whether to stop after this step; asked when it begins
                                 ///< (StepMetrics::stop_requests) and when it ends (late_stop_requests)
};

class Trainer {
 public:
  /// Builds grid, model, objective (plain pretraining without a factory) and optimizer. Collective over
  /// `role`. Throws ConfigError for what the layout cannot hold.
  Trainer(const TrainerOptions& options, const parallel::Communicator& role,
          const ObjectiveFactory& make_objective = {});
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// One optimizer step over this replica's micro-batches (equal numbers on all replicas; a replica's list
  /// may hold batches with zero rows). Collective over the role. Throws NumericError after optim.max_skips
  /// consecutive skips, and where the guard stops the run (StepGuard).
  StepMetrics step(const std::vector<data::Batch>& micro_batches, const StepRequests& requests = {});

  const TrainerOptions& options() const;
  const model::Transformer& model() const;
  const parallel::ParameterMap& parameters() const;
  const parallel::ProcessGrid& grid() const;
  optim::ShardedOptimizer& optimizer();
  Objective& objective();
  TrainState& state();
  /// Takes over a loaded state, and the parameters from the master weights that were written to
  /// optimizer().owned_state(). Collective over the role.
  void restore(TrainState state);
  /// Which part of a global batch this rank's replica reads.
  data::ReplicaSlice replica() const;
  /// Tests: forces the routing of every sparse layer: called for each micro-batch, gives topk ids [T, K] per
  /// layer for this rank's routed tokens.
  using RoutingForcer = std::function<std::vector<at::Tensor>(const nn::TokenBatch&)>;
  void force_routing(RoutingForcer forcer);

 private:
  struct Parts;
  struct Update {
    optim::UpdateResult result;
    bool left_out_by_guard = false;  ///< although the gradients were finite
  };
  Update update_parameters(StepMetrics& metrics, double labels, double seed, bool trains,
                           StepAttempt& attempt, const std::function<StepAttempt()>& again);
  double run_schedule(const std::vector<data::Batch>& micro_batches, const model::ForwardContext& context,
                      double seed, StepTimes& times);
  struct StepCounts {
    std::int64_t labels = 0;
    std::int64_t save_requests = 0;
    std::int64_t stop_requests = 0;
  };
  StepCounts count_over_role(const std::vector<data::Batch>& micro_batches,
                             const StepRequests& requests) const;
  bool is_first_of_replica() const;
  void advance_state(const Update& update, const StepSums& sums, double labels, bool trains);
  void describe_state(StepMetrics& metrics) const;
  std::unique_ptr<Parts> parts_;
};

}  // namespace athanor::train
