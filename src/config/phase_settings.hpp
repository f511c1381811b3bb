// `distill.phase_settings`: what is different in some of the stages.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.hpp"

namespace athanor::config {

/// `distill.*` as it holds in the stages named `stage`: the run's values, with those that
/// distill.phase_settings gives for it. Throws ConfigError for a value that its key refuses.
DistillSection section_of_stage(const RunConfig& config, const std::string& stage);

/// Throws ConfigError for a setting that is not `stage.key=value`, a stage that is not in `stages`, a key
/// that is not a stage's own or is set twice, and a value that its key refuses.
void check_phase_settings(const RunConfig& config, const std::vector<std::string>& stages);

/// Whether some stage has a value of its own for `distill.<key>`.
bool phase_settings_change(const RunConfig& config, const std::string& key);

}  // namespace athanor::config
