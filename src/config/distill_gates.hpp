// What moves a distillation while it runs, as far as it can be wrong before it runs.
#pragma once

#include <vector>

#include "config/run_config.hpp"

namespace athanor::config {

/// Throws ConfigError for gates, early stopping or a policy for a lost teacher that cannot work.
void validate_gates(const RunConfig& config);

/// Throws ConfigError when measuring the codec's gap would make a rank keep more logits than a chunk of rows
/// beyond its own model's. `ranks` by role.
void validate_gap(const RunConfig& config, const std::vector<int>& ranks);

}  // namespace athanor::config
