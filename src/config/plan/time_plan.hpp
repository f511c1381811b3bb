// The expected time of a step from the work of its matrix products, its bytes, and the machine of `plan.*`.
#pragma once

#include "config/plan/traffic_plan.hpp"
#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

struct TimePlan {
  double flops = 0.0;       ///< of the role's matrix products and attention in a step, all ranks
  double rank_flops = 0.0;  ///< of a rank, at even routing
  double compute_s = 0.0;
  double node_s = 0.0;      ///< exchanges with ranks of the own node
  double link_s = 0.0;      ///< exchanges between nodes
  double hideable_s = 0.0;  ///< part of node_s + link_s that may go on while others compute
  /// One after another; and with what can hide behind products hidden, as far as they last.
  double serial_s() const { return compute_s + node_s + link_s; }
  double overlapped_s() const;
};

/// Seconds are 0 without plan.flops_per_s. Elementwise passes and latencies are not in it.
TimePlan plan_time(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims,
                   const TrafficPlan& traffic);

/// What overlap would give if all of it were switched on: every exchange that can hide does.
TrafficPlan with_all_overlap(TrafficPlan traffic);

}  // namespace athanor::config
