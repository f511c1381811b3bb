// The commands: each takes a validated configuration and gives its results.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/error.hpp"
#include "config/run_config.hpp"
#include "parallel/communicator.hpp"

namespace athanor::app {

/// What a command found out: for people, and for --json.
struct CommandResult {
  std::string text;
  nlohmann::json json;
  base::ExitCode exit_code = base::ExitCode::ok;  ///< bad_data: a comparison or check found something
};

/// Each is collective over `world` and throws base::Error.
CommandResult run_tokenize(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_train(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_distill(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_evaluate(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_generate(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_bench_step(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_bench_checkpoint(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_bench_stream(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_bench_collectives(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_bench_dispatch(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_bench_kernels(const config::RunConfig& config, const parallel::Communicator& world);
CommandResult run_checkpoint_verify(const config::RunConfig& config, const parallel::Communicator& world);

/// These work on one rank.
CommandResult run_checkpoint_list(const config::RunConfig& config);
CommandResult run_checkpoint_show(const config::RunConfig& config);
CommandResult run_checkpoint_diff(const config::RunConfig& config);
CommandResult run_checkpoint_merge(const config::RunConfig& config);
CommandResult run_checkpoint_export(const config::RunConfig& config);
CommandResult run_checkpoint_import(const config::RunConfig& config);

/// Throws ConfigError for `generate.*` that contradict each other.
void validate_generation(const config::RunConfig& config);

/// Sets `object[key]`; a number that is not finite becomes null and sets "nonfinite".
void put_number(nlohmann::json& object, const std::string& key, double value);

}  // namespace athanor::app
