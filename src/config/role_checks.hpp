// What a role of a configuration cannot ask for: its model, layout, number formats and batches.
#pragma once

#include "config/run_config.hpp"

namespace athanor::config {

/// Whether the command has steps, data and checkpoints of its own.
bool is_run(Command command);
/// Whether it takes training steps, for measurements too.
bool takes_steps(Command command);

/// Throws ConfigError naming key, value, reason and what to use instead, with the role's name where there are
/// several.
void check_roles(const RunConfig& config, int world_size);

}  // namespace athanor::config
