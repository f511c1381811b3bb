// Bytes that a role's ranks send to others in one step, by the formula of each exchange.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/traffic.hpp"

namespace athanor::config {

/// One kind of exchange in a step.
struct Exchange {
  parallel::Traffic purpose = parallel::Traffic::other;
  std::string formula;         ///< of the bytes, for tables
  std::int64_t bytes = 0;      ///< of all ranks of the role together
  double between_nodes = 0.0;  ///< share of the bytes that leaves the node
  bool can_hide = false;       ///< may go on while others compute
};

struct TrafficPlan {
  std::vector<Exchange> exchanges;
  /// Of all ranks of the role together. Exact, except `dispatch` and `combine` (at even routing) and `link`
  /// (headers left out).
  std::int64_t bytes(parallel::Traffic purpose) const;
};

/// Of one training step of the role, as StepMetrics::bytes_sent counts it. `role.model.vocab_size` must be
/// resolved.
TrafficPlan plan_traffic(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims);

}  // namespace athanor::config
