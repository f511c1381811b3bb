// main(): parse -> check -> run -> exit code.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "app/commands.hpp"
#include "app/launch.hpp"
#include "app/pair_report.hpp"
#include "app/plan_report.hpp"
#include "app/recorded_teacher.hpp"
#include "app/role_setup.hpp"
#include "app/run_device.hpp"
#include "app/tensor_allocator.hpp"
#include "base/dropped_log_lines.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "base/memory.hpp"
#include "base/signal_flag.hpp"
#include "checkpoint/catalog.hpp"
#include "config/command_line.hpp"
#include "config/estimate.hpp"
#include "config/help.hpp"
#include "config/recording_plan.hpp"
#include "config/roles.hpp"
#include "config/validate.hpp"
#include "data/tokenizer.hpp"
#include "parallel/mpi_environment.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {

void put_number(nlohmann::json& object, const std::string& key, double value) {
  object[key] = value;  // nlohmann writes what is not finite as null
  if (!std::isfinite(value)) {
    object["nonfinite"] = true;
  }
}

namespace {

using config::Command;

bool reads_checkpoint(Command command) {
  return command == Command::evaluate || command == Command::generate;
}

// What the user asked for; evaluate and generate: with what the checkpoint's run says of itself.
config::ParsedCommand parse(int argc, char** argv) {
  config::ParsedCommand parsed = config::parse_command_line(argc, argv);
  const bool is_action = parsed.command && !parsed.help && !parsed.version && !parsed.dump_docs;
  if (is_action && reads_checkpoint(*parsed.command) && !parsed.config.source.checkpoint.empty()) {
    const std::string folder = checkpoint::resolve_checkpoint(parsed.config.source.checkpoint);
    parsed.config =
        config::resolve_with_base(*parsed.command, read_checkpoint_settings(folder), parsed.settings);
    parsed.config.source.checkpoint = folder;
  }
  if (is_action) {
    adopt_recorded_teacher(parsed);
  }
  return parsed;
}

// The text of options that only print; nothing for those that work.
std::optional<std::string> text_to_print(const config::ParsedCommand& parsed) {
  if (parsed.version) {
    return fmt::format("athanor {}\n{}", config::version, version_of_cuda());
  }
  if (parsed.dump_docs) {
    return config::documentation();
  }
  if (parsed.help) {
    return parsed.command ? config::command_help(*parsed.command) : config::general_help();
  }
  if (parsed.print_config) {
    return config::to_ini(parsed.config);
  }
  return std::nullopt;
}

// The number of ranks to check for: of the job, or what a dry run in one process is to plan.
int planned_ranks(const config::ParsedCommand& parsed, int world_size) {
  return parsed.dry_run && world_size == 1 ? config::planned_ranks(parsed.config, world_size) : world_size;
}

// vocab_size = 0 becomes the tokenizer's; a smaller one than that could not take its ids.
void resolve_vocabulary(const config::RunConfig& config, config::RoleConfig& role) {
  std::int64_t& vocab_size = role.model.vocab_size;
  if (config.data.tokenizer.empty() || (reads_checkpoint(config.command) && vocab_size > 0)) {
    return;
  }
  const std::int64_t needed = data::Tokenizer(config.data.tokenizer).vocab_size();
  if (vocab_size > 0 && vocab_size < needed) {
    throw base::ConfigError(
        "model.vocab_size={} (the tokenizer {} has {} tokens) use at least that, or 0 for the "
        "tokenizer's",
        vocab_size, config.data.tokenizer, needed);
  }
  vocab_size = vocab_size > 0 ? vocab_size : needed;
}

// Everything that can be refused before work: values, combinations, the vocabulary, memory.
void check(config::ParsedCommand& parsed, int world_size, int local_ranks) {
  config::RunConfig& config = parsed.config;
  const int ranks = planned_ranks(parsed, world_size);
  if (config::is_replay(config)) {  // the teacher's is known already, and compared with them
    for (std::size_t i = 1; i < config.roles.size(); ++i) {
      resolve_vocabulary(config, config.roles[i]);
    }
  }
  config::validate(config, ranks);
  if (!config::has_model(config.command)) {
    return;
  }
  if (config.command == Command::generate) {
    validate_generation(config);
  }
  const bool is_planned_elsewhere = ranks != world_size;
  if (!is_planned_elsewhere) {
    check_device(config, local_ranks);
  }
  const std::vector<int> role_ranks = config::resolve_ranks(config, ranks);
  for (std::size_t i = 0; i < config.roles.size(); ++i) {
    resolve_vocabulary(config, config.roles[i]);
  }
  const bool has_whole_model =  // not one layer's rows, or one kernel's data
      config.command != Command::bench_dispatch && config.command != Command::bench_kernels;
  const bool knows_memory = !is_planned_elsewhere || config.plan.memory_bytes > 0.0;
  for (std::size_t i = 0; i < config.roles.size() && has_whole_model && knows_memory; ++i) {
    if (!config::runs(config, config.roles[i])) {
      continue;
    }
    const parallel::ParallelDims dims = config::resolve_dims(config.roles[i], role_ranks[i]);
    config::check_memory(config, config::plan_memory(config, config.roles[i], dims),
                         base::available_memory_bytes(), local_ranks);
  }
}

CommandResult plan(const config::ParsedCommand& parsed, int world_size) {
  const config::RunConfig& config = parsed.config;
  CommandResult result{"", nlohmann::json::object()};
  if (!config::has_model(config.command)) {
    result.text = fmt::format("{}: the options are in order\n", config::command_name(config.command));
    return result;
  }
  const std::vector<int> role_ranks = config::resolve_ranks(config, planned_ranks(parsed, world_size));
  for (std::size_t i = 0; i < config.roles.size(); ++i) {
    const config::RoleConfig& role = config.roles[i];
    if (!config::runs(config, role)) {
      result.text += fmt::format("{}: recorded in {}\n", role.name, config.distill.source);
      continue;
    }
    const parallel::ParallelDims dims = config::resolve_dims(role, role_ranks[i]);
    result.text += config::describe_plan(config, role, dims);
    result.json[role.name] = plan_of_role(config, role, dims);
  }
  if (config.command == Command::distill) {
    const CommandResult pair = describe_pair(config, role_ranks);
    result.text += pair.text;
    result.json["pair"] = pair.json;
  }
  return result;
}

CommandResult run_command(const config::RunConfig& config, const parallel::Communicator& world) {
  switch (config.command) {
    case Command::tokenize:
      return run_tokenize(config, world);
    case Command::train:
      return run_train(config, world);
    case Command::distill:
      return run_distill(config, world);
    case Command::evaluate:
      return run_evaluate(config, world);
    case Command::generate:
      return run_generate(config, world);
    case Command::bench_step:
      return run_bench_step(config, world);
    case Command::bench_checkpoint:
      return run_bench_checkpoint(config, world);
    case Command::bench_stream:
      return run_bench_stream(config, world);
    case Command::bench_collectives:
      return run_bench_collectives(config, world);
    case Command::bench_dispatch:
      return run_bench_dispatch(config, world);
    case Command::bench_kernels:
      return run_bench_kernels(config, world);
    case Command::checkpoint_list:
      return run_checkpoint_list(config);
    case Command::checkpoint_verify:
      return run_checkpoint_verify(config, world);
    case Command::checkpoint_show:
      return run_checkpoint_show(config);
    case Command::checkpoint_diff:
      return run_checkpoint_diff(config);
    case Command::checkpoint_merge:
      return run_checkpoint_merge(config);
    case Command::checkpoint_export:
      return run_checkpoint_export(config);
    case Command::checkpoint_import:
      return run_checkpoint_import(config);
  }
  throw base::InternalError("no such command");
}

void print_result(const CommandResult& result, bool as_json, int rank) {
  if (rank != 0) {
    return;
  }
  // Text from a model may hold broken UTF-8: replaced rather than refused.
  const std::string text =
      as_json ? result.json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
              : result.text;
  const bool is_written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (std::fflush(stdout) != 0 || !is_written) {
    base::log_warning("the results could not be written to stdout (it is closed, or its disk is full)");
  }
}

// A rank that cannot go on ends the whole job. The others wait a little first: when all fail alike, rank 0
// speaks for them and its abort comes before they have said the same.
int fail(const parallel::MpiEnvironment& environment, const parallel::Communicator& world, int code,
         const std::string& message) {
  if (world.size() == 1) {
    print_error(message);
    return code;
  }
  if (world.rank() != 0) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    print_error(fmt::format("rank {}: {}", world.rank(), message));
  } else {
    print_error(message);
  }
  environment.abort_job(code);
}

// The stages in which all ranks agree on errors: no abort is needed. Nothing: go on.
std::optional<int> prepare(int argc, char** argv, const parallel::Communicator& world,
                           config::ParsedCommand& parsed) {
  parallel::run_agreed(world, [&] { parsed = parse(argc, argv); });
  if (const std::optional<std::string> text = text_to_print(parsed)) {
    print_result({*text, {}}, false, world.rank());
    return 0;
  }
  const int local_ranks = count_local_ranks(world);
  parallel::run_agreed(world, [&] { check(parsed, world.size(), local_ranks); });
  check_same_config(config::to_ini(parsed.config), world);
  choose_collectives(parsed.config.collectives, world);
  share_cores(local_ranks);
  if (parsed.dry_run) {
    CommandResult planned;
    parallel::run_agreed(world, [&] { planned = plan(parsed, world.size()); });
    print_result(planned, parsed.json, world.rank());
    return 0;
  }
  return std::nullopt;
}

// Commands that can save what they have done. Decided before MPI starts, so that no signal is missed.
bool stops_on_signals(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  return command == config::command_name(Command::train) || command == config::command_name(Command::distill);
}

int run(int argc, char** argv) {
  const parallel::MpiEnvironment environment(&argc, &argv);
  const parallel::Communicator world = environment.make_world();
  base::configure_log(
      {.print_once = world.rank() == 0, .local_prefix = fmt::format("rank {}", world.rank())});
  config::ParsedCommand parsed;
  try {
    if (const std::optional<int> code = prepare(argc, argv, world, parsed)) {
      return *code;
    }
  } catch (const base::Error& error) {  // the same on every rank
    if (world.rank() == 0) {
      print_error(error.what());
    }
    return static_cast<int>(error.exit_code());
  }
  try {
    const CommandResult result = run_command(parsed.config, world);
    print_result(result, parsed.json, world.rank());
    if (base::dropped_log_lines() > 0) {
      base::log_local(base::LogLevel::warning,
                      fmt::format("{} log lines could not be written", base::dropped_log_lines()));
    }
    return static_cast<int>(result.exit_code);
  } catch (const base::Error& error) {
    return fail(environment, world, static_cast<int>(error.exit_code()), error.what());
  } catch (const std::exception& error) {
    return fail(environment, world, static_cast<int>(base::ExitCode::internal), parallel::message_of(error));
  }
}

}  // namespace
}  // namespace athanor::app

int main(int argc, char** argv) {
  athanor::base::ignore_closed_pipes();
  athanor::base::keep_freed_memory();
  athanor::app::reuse_tensor_memory();
  try {
    if (athanor::app::stops_on_signals(argc, argv)) {
      athanor::base::catch_stop_signals();
    }
    return athanor::app::run(argc, argv);
  } catch (const std::exception& error) {  // MPI did not start, or failed outside a command
    athanor::app::print_error(athanor::parallel::message_of(error));
    return static_cast<int>(athanor::base::ExitCode::internal);
  }
}
