// AdamW over the trainable parameters of a role: flat buckets by reduction group, gradient reduction, global norm,
// update, parameter gather; state sharded over the holders of a slice (ZeRO-1, Rajbhandari et al. 2019).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/precision.hpp"
#include "optim/loss_scaler.hpp"
#include "optim/lr_schedule.hpp"
#include "optim/optim_options.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/reduction_groups.hpp"

namespace athanor::optim {

/// What one update did; equal on all ranks of the role.
struct UpdateResult {
  double grad_norm = 0.0;  ///< global L2 norm of the mean gradient, before clipping
  bool skipped = false;    ///< a non-finite gradient somewhere: nothing was changed
};

/// State of one parameter's owned part, for checkpoints and tests: flat ranges of the local slice.
struct OwnedState {
  std::shared_ptr<parallel::Parameter> parameter;
  std::int64_t first = 0;   ///< first element of the flattened local slice that this rank owns
  std::int64_t count = 0;   ///< elements owned (may be 0)
  at::Tensor master;        ///< [count] accumulation type (aliases the parameter when compute type equals it)
  at::Tensor exp_avg;       ///< [count]
  at::Tensor exp_avg_sq;    ///< [count]
};

class ShardedOptimizer {
 public:
  /// Re-homes parameter values and attaches gradient accumulators in flat storage. Collective over grid.role().
  /// Throws ConfigError for wire types that zero = 0 or f64 cannot use.
  ShardedOptimizer(const OptimOptions& options, base::WireType grad_comm, const parallel::ParameterMap& parameters,
                   const parallel::ProcessGrid& grid);
  ~ShardedOptimizer();
  ShardedOptimizer(const ShardedOptimizer&) = delete;
  ShardedOptimizer& operator=(const ShardedOptimizer&) = delete;

  /// Forgets the gradients; call before the first backward of a step.
  void begin_step();

  /// Sums gradients over their groups, scales by `gradient_scale` (1/N over the loss scale), clips, updates, gathers.
  /// Collective over the role. `lr` from learning_rate(). On a non-finite gradient anywhere nothing changes.
  struct StepInput {
    double lr = 0.0;
    double gradient_scale = 1.0;
  };
  UpdateResult step(const StepInput& input);

  /// AdamW's step count (bias correction).
  std::int64_t updates() const;
  void set_updates(std::int64_t updates);
  std::vector<OwnedState> owned_state();
  /// After master weights were loaded: writes them to the parameters (gathers over groups). Collective.
  void publish_master();
  /// Seconds of the last step spent in gradient reduction, update and gather.
  struct Times {
    double reduce_s = 0.0;
    double update_s = 0.0;
    double gather_s = 0.0;
  };
  const Times& last_times() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::optim
