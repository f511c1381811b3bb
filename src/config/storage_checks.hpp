// What of precision.store_* a role cannot have.
#pragma once

#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// Throws ConfigError where activations or gradients cannot be kept in FP8 as asked for: in f64, and
/// gradients that are sums of several, which FP8 cannot add.
void check_storage(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims);

}  // namespace athanor::config
