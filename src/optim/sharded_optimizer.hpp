// AdamW over the trainable parameters of a role: flat buckets by reduction group, gradient reduction, global
// norm, update, parameter gather; state sharded over the holders of a slice (ZeRO-1, Rajbhandari et al.
// 2019).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "optim/loss_scaler.hpp"
#include "optim/lr_schedule.hpp"
#include "optim/optim_options.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/reduction_groups.hpp"

namespace athanor::optim {

/// What one update did; equal on all ranks of the role.
struct UpdateResult {
  double grad_norm = 0.0;  ///< global L2 norm of the mean gradient, before clipping; not finite when skipped
  bool skipped = false;    ///< a non-finite gradient somewhere: nothing was changed
};

/// State of a part of one parameter, for checkpoints and tests: a range of its flattened local slice. The
/// tensors are views of the optimizer's own storage: writing to them loads a state (then call
/// publish_master()).
struct OwnedState {
  std::shared_ptr<parallel::Parameter> parameter;
  std::int64_t first = 0;  ///< first element of the flattened local slice that this entry covers
  std::int64_t count = 0;  ///< elements covered, at least 1
  at::Tensor master;       ///< [count] accumulation type (aliases the parameter when compute type equals it)
  at::Tensor exp_avg;      ///< [count]
  at::Tensor exp_avg_sq;   ///< [count]
};

/// What this rank's rounded gradients of one parameter still lack (error feedback), as a gradient of the mean
/// loss. `residual` is a view of the optimizer's own storage.
struct ResidualState {
  std::shared_ptr<parallel::Parameter> parameter;
  int holder = 0;  ///< which of the slice's holders this rank is, in rank order
  int holders = 1;
  at::Tensor residual;  ///< [elements of the local slice], at least 1
};

class ShardedOptimizer {
 public:
  /// Re-homes parameter values (the same leaves, now views) and attaches gradient accumulators in flat
  /// storage. `parameters`' tensors must be set and of one type. Collective over grid.role(). Throws
  /// ConfigError for illegal options and for a `wire` that they or f64 exclude.
  ShardedOptimizer(const OptimOptions& options, const GradientWire& wire,
                   const parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);
  ~ShardedOptimizer();
  ShardedOptimizer(const ShardedOptimizer&) = delete;
  ShardedOptimizer& operator=(const ShardedOptimizer&) = delete;

  /// Forgets the gradients; call before the first backward of a step.
  void begin_step();
  /// With overlap_reduce: the next backward pass is the last one of this step, and reduction begins under it,
  /// bucket by bucket, as gradients become final. The scale is that of step() or reduce(), which ends it; or
  /// abandon_step() does. Without the option nothing: the sums have the same bits.
  void begin_reduction(double gradient_scale);
  /// Instead of step(): nothing changes. Collective over the role after begin_reduction(), because what has
  /// been started has to end.
  void abandon_step(double gradient_scale);

  /// With overlap_gather the new parameters may still be on their way when this returns: reading one through
  /// the ParameterMap or nn::read_weight() waits for it (Parameter::before_read), as do owned_state(),
  /// written_state() and publish_master().
  /// Sums gradients over their groups, scales by `gradient_scale` (1/N over the loss scale), clips, updates,
  /// gathers. Collective over the role. `lr` from learning_rate(). On a non-finite gradient anywhere nothing
  /// changes.
  struct StepInput {
    double lr = 0.0;
    double gradient_scale = 1.0;
  };
  UpdateResult step(const StepInput& input);
  /// The first half of step(): sums gradients over their groups; returns the global L2 norm of the mean
  /// gradient, the same on all ranks, which is not finite when a gradient somewhere is not. Collective.
  double reduce(double gradient_scale);
  /// The second half: updates, or, unless `accepted`, changes nothing; `norm` is that of reduce() and finite
  /// when accepted. After a rejection begin_step() and another reduce() may follow. Collective.
  UpdateResult finish(const StepInput& input, double norm, bool accepted);

  /// Which ranks hold the same parameters; frozen ones are in none.
  const std::vector<parallel::ReductionGroup>& reduction_groups() const;

  /// AdamW's step count (bias correction).
  std::int64_t updates() const;
  void set_updates(std::int64_t updates);
  /// The state this rank keeps, by reduction group, bucket and parameter. With zero = 1 the entries of the
  /// holders of a slice cover each of its elements exactly once: a rank may have several entries of a
  /// parameter, one for each bucket it reaches into, or none. With zero = 0 every holder has one entry with
  /// all of it. Empty slices have none.
  std::vector<OwnedState> owned_state();
  /// The part of the state that this rank writes to a checkpoint: the entries of the holders of a slice cover
  /// each of its elements exactly once, in nearly equal parts, with zero = 0 too.
  std::vector<OwnedState> written_state();
  /// With error feedback one entry for each slice that other ranks hold too; every holder has its own.
  std::vector<ResidualState> residual_state();
  /// After master weights were loaded: writes them to the parameters (gathers over groups). Collective over
  /// the role.
  void publish_master();
  /// Seconds of the last step.
  struct Times {
    double reduce_s = 0.0;  ///< sums of gradients over groups as far as not under backward, and the norm
    double update_s = 0.0;
    double gather_s = 0.0;  ///< parameters back from their owners; of overlap_gather the start only
  };
  const Times& last_times() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::optim
