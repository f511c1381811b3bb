// What `distill.source`, `distill.record` and `distill.record_temperatures` ask for.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.hpp"

namespace athanor::config {

/// Whether the signals come from a recording: then the first role, the teacher, describes the one that was
/// recorded, and has no ranks.
bool is_replay(const RunConfig& config);

/// Whether a role has ranks of its own in the job.
bool runs(const RunConfig& config, const RoleConfig& role);

/// distill.record_temperatures as numbers. Throws ConfigError.
std::vector<double> record_temperatures(const RunConfig& config);

/// Throws ConfigError for what contradicts recording or replaying.
void validate_recording(const RunConfig& config);

}  // namespace athanor::config
