// The guard around one step of a trainer: runs a step that stands out once more, tells passing faults of the
// hardware from the data, decides whether the update is made, compares replicas.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/batch.hpp"
#include "optim/sharded_optimizer.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"
#include "train/guard.hpp"
#include "train/replica_check.hpp"
#include "train/step_metrics.hpp"

namespace athanor::train {

/// A step up to its summed gradients, before anything is updated.
struct StepAttempt {
  double loss_sum = 0.0;   ///< this rank's share of the sum of cross-entropies
  double grad_norm = 0.0;  ///< of the role
};

/// What is known of a step before its update.
struct GuardedStep {
  std::int64_t number = 0;  ///< counted from 1
  double labels = 0.0;
  bool has_loss_scaling = false;  ///< overflows are ordinary: only the skip rule of the scaler applies
  /// Makes the same step again from the same batches (equal bits unless the hardware fails); empty: it cannot
  /// be repeated.
  std::function<StepAttempt()> again{};
};

class StepGuard {
 public:
  /// All outlive this. `max_skips`: steps in a row with gradients that are not finite before it is too much.
  StepGuard(const GuardOptions& options, const parallel::ParameterMap& parameters,
            const optim::ShardedOptimizer& optimizer, const parallel::ProcessGrid& grid,
            std::int64_t max_skips);

  /// Forgets the step before; call when one begins. `stage`: Objective::stage().
  void begin_step(GuardState& state, const std::string& stage);
  /// Whether the update is to be made; `attempt` becomes the one to make it with. Collective over the role.
  /// Throws NumericError for a damaged parameter that no replica can restore.
  bool accepts(GuardState& state, const GuardedStep& step, StepAttempt& attempt);

  /// The step is over: counts it, fills the guard's fields of `metrics`. `consecutive_skips`: with gradients
  /// that are not finite, this one included. Asks for a rollback (metrics.rollback_reason), or throws
  /// NumericError when too many steps in a row were bad and there is nothing else to do. Collective over the
  /// role.
  void finish(GuardState& state, StepMetrics& metrics, std::int64_t consecutive_skips,
              const std::vector<data::Batch>& micro_batches);

  /// Parameters were loaded.
  void forget() { replicas_.forget(); }

 private:
  struct LocalSums {
    double loss_sum = 0.0;
    std::uint64_t gradients = 0;  // hash
  };
  LocalSums local_sums(const StepAttempt& attempt) const;
  std::string name_ranks(const LocalSums& first, const LocalSums& second) const;
  bool is_replica_check_due(std::int64_t step) const;
  bool check_replicas(GuardState& state, const GuardedStep& step, StepAttempt& attempt);
  Trip judge_again(GuardState& state, const GuardedStep& step, const Trip& first, StepAttempt& attempt);
  void warn(const std::string& text) const;
  void stop_or_roll_back(const GuardState& state, StepMetrics& metrics, const std::string& reason,
                         const std::vector<data::Batch>& micro_batches) const;

  Guard guard_;
  const parallel::ParameterMap* parameters_;
  const parallel::ProcessGrid* grid_;
  std::int64_t max_skips_ = 1;
  ReplicaCheck replicas_;
  std::int64_t remembered_after_ = 0;  // the step after which replicas_ noted the parameters
  // Of the step that is under way.
  Trip trip_;
  std::string event_;
  bool is_judged_ = false;
  double loss_ = 0.0;
  double loss_sum_ = 0.0;
};

}  // namespace athanor::train
