#include "config/validate.hpp"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/error.hpp"
#include "config/distill_gates.hpp"
#include "config/distill_plan.hpp"
#include "config/ini.hpp"
#include "config/init_layers.hpp"
#include "config/key.hpp"
#include "config/recording_plan.hpp"
#include "config/role_checks.hpp"
#include "config/roles.hpp"
#include "config/value_text.hpp"
#include "data/dataset.hpp"
#include "parallel/collectives/algorithm_table.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;

bool uses_checkpoint(Command command) {
  return command == Command::evaluate || command == Command::generate;
}

// Each value by itself: what the key table says. Values set by code pass through the same checks as text.
void check_values(const RunConfig& config) {
  RunConfig copy = config;
  for (const Key& key : all_keys()) {
    for (std::size_t i = 0; i < config.roles.size(); ++i) {
      const std::string text = key.get(config, config.roles[i]);
      try {
        key.set(copy, copy.roles[i], text);
      } catch (const BadValue& bad) {
        const bool is_prefixed = i > 0 && key.per_role;
        throw ConfigError("{}{}={} {}", is_prefixed ? config.roles[i].name + "." : "", key.name, text,
                          bad.what());
      }
    }
  }
}

void check_data(const RunConfig& config) {
  const std::vector<data::SourceSpec> train = data::parse_sources(config.data.train);
  const std::vector<data::SourceSpec> valid = data::parse_sources(config.data.valid);
  if (is_run(config.command) && train.empty()) {
    throw ConfigError(
        "data.train is empty (there is nothing to train on) name token files, as athanor tokenize "
        "writes them");
  }
  const bool watches_held_out = config.command == Command::distill && config.distill.stopping.patience > 0;
  if (is_run(config.command) && config.train.eval_every > 0 && valid.empty() && !watches_held_out) {
    throw ConfigError(
        "train.eval_every={} (data.valid is empty: there is nothing to evaluate on) set data.valid, or "
        "train.eval_every=0",
        config.train.eval_every);
  }
  if (config.command == Command::evaluate && valid.empty()) {
    throw ConfigError("data.valid is empty (there is nothing to evaluate on) name token files");
  }
}

void check_tokenize(const RunConfig& config, int world_size) {
  if (config.tokenize.input.empty()) {
    throw ConfigError("--input is missing (there is no text to tokenize) give --input=FILES");
  }
  if (config.tokenize.options.output.empty() && config.tokenize.options.tokenizer.empty()) {
    throw ConfigError(
        "--output is missing (the token files need a name) give --output=PATH, or --tokenizer=MODEL to "
        "train a tokenizer alone");
  }
  if (world_size > 1) {
    throw ConfigError("tokenize was started on {} ranks (it works on one) start it without mpirun",
                      world_size);
  }
}

void check_conversion(const RunConfig& config, int world_size) {
  const ExchangeSection& exchange = config.exchange;
  if (exchange.from.empty()) {
    throw ConfigError("--from is missing ({} reads something) give --from=PATH",
                      command_name(config.command));
  }
  const bool writes =
      config.command == Command::checkpoint_diff || config.command == Command::checkpoint_merge ||
      config.command == Command::checkpoint_export || config.command == Command::checkpoint_import;
  if (writes && exchange.to.empty()) {
    throw ConfigError("--to is missing ({} needs it) give --to=PATH", command_name(config.command));
  }
  if (world_size > 1 && config.command != Command::checkpoint_verify) {
    throw ConfigError("{} was started on {} ranks (it works on one) start it without mpirun",
                      command_name(config.command), world_size);
  }
}

void check_checkpoint(const RunConfig& config) {
  for (const std::string& step : split_list(config.checkpoint.pinned)) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(step.data(), step.data() + step.size(), value);
    if (error != std::errc() || end != step.data() + step.size() || value < 0) {
      throw ConfigError("checkpoint.pinned={} ({} is no step) give a comma-separated list of steps",
                        config.checkpoint.pinned, step);
    }
  }
  for (const std::string& name : split_list(config.run.allow_mismatch)) {
    if (split_key(name).key == nullptr) {
      throw ConfigError("run.allow_mismatch={} (there is no key {}) give a comma-separated list of keys",
                        config.run.allow_mismatch, name);
    }
  }
}

// A file's rules are checked when it is read.
void check_collectives(const RunConfig& config) {
  if (!parallel::is_algorithm_file(config.collectives)) {
    const parallel::AlgorithmTable table(parallel::parse_algorithm_list(config.collectives));
  }
}

void check_bench_routing(const RunConfig& config) {
  const BenchSection& bench = config.bench;
  if (bench.compare_balanced && bench.worst_routing) {
    throw ConfigError(
        "bench.worst_routing=true (bench.compare_balanced=true times the router's own choices) set one of "
        "them");
  }
  if ((bench.compare_balanced || bench.worst_routing) && config.roles[0].model.moe.num_experts == 0) {
    throw ConfigError("bench.{}=true (moe.experts=0: a dense model routes nothing) leave it out",
                      bench.worst_routing ? "worst_routing" : "compare_balanced");
  }
}

void check_sizes(const BenchSection& bench) {
  if (bench.max_bytes < bench.min_bytes) {
    throw ConfigError("bench.max_bytes={} (bench.min_bytes={} is more) use at least that", bench.max_bytes,
                      bench.min_bytes);
  }
}

void check_guard(const RunConfig& config) {
  const GuardSection& guard = config.guard;
  if (guard.min_steps > guard.window) {
    throw ConfigError(
        "guard.min_steps={} (the window never holds more than guard.window={}) use at most that",
        guard.min_steps, guard.window);
  }
  if (guard.action == GuardAction::rollback && config.command == Command::distill) {
    throw ConfigError(
        "guard.action=rollback (teacher and students are at different steps and cannot go back together) use "
        "skip or warn: with skip a batch that the teacher leaves out is left out by its students too");
  }
  if (guard.action == GuardAction::rollback && config.checkpoint.every == 0) {
    throw ConfigError(
        "guard.action=rollback (checkpoint.every=0: there would be nothing to go back to) set "
        "checkpoint.every, or use skip");
  }
}

void check_watchdog(const RunConfig& config) {
  const double factor = config.watchdog.hard_factor;
  if (factor > 0 && factor < 1) {
    throw ConfigError(
        "watchdog.hard_factor={} (the job would end before anybody is told why) use 1 or more, or 0 for "
        "never",
        factor);
  }
}

void check_source(const RunConfig& config) {
  if (config.source.checkpoint.empty()) {
    throw ConfigError("--checkpoint is missing ({} reads a model) give --checkpoint=RUN",
                      command_name(config.command));
  }
  if (config.source.role != config.roles[0].name) {
    throw ConfigError("--role={} (the checkpoint has {}) use one of these roles", config.source.role,
                      role_list(config.roles));
  }
}

}  // namespace

parallel::ParallelDims resolve_dims(const RoleConfig& role, int ranks) {
  if (role.ranks > 0 && role.ranks != ranks) {
    throw ConfigError("{}.ranks={} (the job has {} ranks) start it with that many, or leave the key out",
                      role.name, role.ranks, ranks);
  }
  const auto& [tp, ep] = role.parallel;
  if (ranks % tp != 0) {
    throw ConfigError(
        "parallel.tp={} (it does not divide the {} ranks of the {}) use a divisor, or other ranks", tp, ranks,
        role.name);
  }
  const int dp = ranks / tp;
  if (ranks % ep != 0) {
    throw ConfigError("parallel.ep={} (it does not divide dp * tp = {} * {} = {}) use a divisor of that", ep,
                      dp, tp, ranks);
  }
  return {.pp = 1, .dp = dp, .cp = 1, .tp = tp, .ep = ep};
}

std::int64_t resolve_micro_batch(const RunConfig& config, const RoleConfig& role,
                                 const parallel::ParallelDims& dims) {
  return role.batch_micro > 0 ? role.batch_micro : std::max<std::int64_t>(config.batch.global / dims.dp, 1);
}

void validate(const RunConfig& config, int world_size) {
  check_values(config);
  if (config.command == Command::tokenize) {
    check_tokenize(config, world_size);
    return;
  }
  if (converts_checkpoints(config.command)) {
    check_conversion(config, world_size);
    return;
  }
  check_collectives(config);
  if (config.command == Command::bench_collectives) {
    check_sizes(config.bench);
    return;
  }
  if (config.command == Command::bench_step) {
    check_bench_routing(config);
  }
  if (uses_checkpoint(config.command)) {
    check_source(config);
  }
  if (is_run(config.command)) {
    check_checkpoint(config);
    check_watchdog(config);
    check_guard(config);
  }
  check_data(config);
  check_roles(config, world_size);
  if (has_students(config.command)) {
    validate_distill(config);
    validate_gap(config, resolve_ranks(config, world_size));
  }
}

}  // namespace athanor::config
