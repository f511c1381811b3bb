// The plan of --dry-run as JSON.
#pragma once

#include <nlohmann/json.hpp>

#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::app {

/// Grid, parameters, memory of a rank by part, bytes of a step by purpose and the expected times of one role.
nlohmann::json plan_of_role(const config::RunConfig& config, const config::RoleConfig& role,
                            const parallel::ParallelDims& dims);

}  // namespace athanor::app
