// What a role's init_* keys ask for.
#pragma once

#include <cstdint>
#include <vector>

#include "config/run_config.hpp"

namespace athanor::config {

/// `init_layers` as numbers; empty: equally spaced ones. Throws ConfigError unless there is one for each
/// layer, in rising order.
std::vector<std::int64_t> init_layers(const RoleConfig& role);

/// Throws ConfigError where the init_* keys do not go together. Looks at no file.
void check_init(const RoleConfig& role);

}  // namespace athanor::config
