// The commands: each takes a validated configuration and gives its results.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "config/run_config.hpp"
#include "parallel/communicator.hpp"

namespace athanor::app {

/// What a command found out: for people, and for --json.
struct CommandResult {
  std::string text;
  nlohmann::json json;
};

/// Each is collective over `world` and throws base::Error.
CommandResult run_tokenize(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_train(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_evaluate(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_generate(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_bench_step(const config::RunConfig& config, const parallel::Communicator& world);

/// Throws ConfigError for `generate.*` that contradict each other.
void validate_generation(const config::RunConfig& config);

/// Sets `object[key]`; a number that is not finite becomes null and sets "nonfinite".
void put_number(nlohmann::json& object, const std::string& key, double value);

}  // namespace athanor::app
