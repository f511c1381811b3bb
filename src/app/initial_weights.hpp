// What a role's init keys mean: the larger model that it starts from, checked before any work.
#pragma once

#include <optional>
#include <string>

#include "config/run_config.hpp"
#include "train/student_weights.hpp"

namespace athanor::app {

/// How a role starts from the larger model in `folder` (that resolve_checkpoint gave); nothing unless
/// init_mode=shrink. Throws CheckpointError, ConfigError.
std::optional<train::ShrinkOptions> make_shrink_options(const config::RoleConfig& role,
                                                        const std::string& folder);

/// Throws as make_shrink_options and train::check_shrink, or MissingInputError, when some role cannot start
/// from its init.
void check_initial_weights(const config::RunConfig& config);

}  // namespace athanor::app
