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
#include "config/roles.hpp"
#include "config/value_text.hpp"
#include "data/dataset.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;

bool uses_checkpoint(Command command) {
  return command == Command::evaluate || command == Command::generate;
}

// Has steps, data and checkpoints of its own.
bool is_run(Command command) {
  return command == Command::train || command == Command::distill;
}

bool trains(Command command) {
  return is_run(command) || command == Command::bench_step || command == Command::bench_checkpoint ||
         command == Command::bench_stream;
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

void check_attention(const model::TransformerConfig& model) {
  if (model.heads % model.kv_heads != 0) {
    throw ConfigError("model.kv_heads={} (it does not divide model.heads={}) use a divisor of the heads",
                      model.kv_heads, model.heads);
  }
  if (model.head_dim == 0 && model.hidden % model.heads != 0) {
    throw ConfigError(
        "model.heads={} (it does not divide model.hidden={}) use a divisor, or set model.head_dim",
        model.heads, model.hidden);
  }
  if (model.resolved_head_dim() % 2 != 0) {
    throw ConfigError("model.head_dim={} (rotary positions turn pairs of channels) use an even number",
                      model.resolved_head_dim());
  }
}

void check_expert_groups(const moe::MoeOptions& moe) {
  if (moe.num_experts % moe.groups != 0) {
    throw ConfigError("moe.groups={} (it does not divide moe.experts={}) use a divisor of the experts",
                      moe.groups, moe.num_experts);
  }
  if (moe.group_top_k > moe.groups) {
    throw ConfigError("moe.group_top_k={} (there are moe.groups={}) use at most that", moe.group_top_k,
                      moe.groups);
  }
  const std::int64_t reachable =
      moe.group_top_k == 0 ? moe.num_experts : moe.group_top_k * (moe.num_experts / moe.groups);
  if (moe.top_k > reachable) {
    throw ConfigError(
        "moe.top_k={} (moe.group_top_k={} groups hold {} experts) raise group_top_k or lower top_k",
        moe.top_k, moe.group_top_k, reachable);
  }
}

void check_experts(const model::TransformerConfig& model, Command command) {
  const moe::MoeOptions& moe = model.moe;
  if (moe.num_experts == 0) {
    return;
  }
  if (moe.top_k > moe.num_experts) {
    throw ConfigError("moe.top_k={} (there are only moe.experts={}) use at most that", moe.top_k,
                      moe.num_experts);
  }
  check_expert_groups(moe);
  if (moe.every > model.layers) {
    throw ConfigError(
        "moe.every={} (model.layers={}: no layer would be sparse) use at most that, or moe.experts=0",
        moe.every, model.layers);
  }
  if (moe.force_uniform && command != Command::bench_step) {
    throw ConfigError(
        "moe.force_uniform=true (it ignores the router and is for measurements) leave it out of {}",
        command_name(command));
  }
}

void check_expert_layout(const RoleConfig& role, const parallel::ParallelDims& dims) {
  const moe::MoeOptions& moe = role.model.moe;
  if (moe.num_experts == 0) {
    if (dims.ep > 1) {
      throw ConfigError(
          "parallel.ep={} (moe.experts=0: a dense model has no experts to divide) use parallel.ep=1",
          dims.ep);
    }
    return;
  }
  if (dims.ep > moe.num_experts) {
    throw ConfigError(
        "parallel.ep={} (there are only moe.experts={}, and a rank needs one at least) use at most that; "
        "more ranks than experts take ep below the number of ranks",
        dims.ep, moe.num_experts);
  }
  if (moe.num_experts % dims.ep != 0) {
    throw ConfigError("parallel.ep={} (it does not divide moe.experts={}) use a divisor of the experts",
                      dims.ep, moe.num_experts);
  }
}

void check_model_layout(const RoleConfig& role, const parallel::ParallelDims& dims) {
  const model::TransformerConfig& model = role.model;
  if (model.heads % dims.tp != 0) {
    throw ConfigError("parallel.tp={} (it does not divide model.heads={}) use a divisor of the heads",
                      dims.tp, model.heads);
  }
  if (model.kv_heads % dims.tp != 0 && dims.tp % model.kv_heads != 0) {
    throw ConfigError(
        "parallel.tp={} (model.kv_heads={}: one must divide the other) use another tp or kv_heads", dims.tp,
        model.kv_heads);
  }
  check_expert_layout(role, dims);
}

// Formats of the rows between tokens and experts; gradients are checked where they are reduced.
void check_row_wire(const char* name, base::WireType wire, base::ComputeType compute) {
  if (wire == base::WireType::full) {
    return;
  }
  if (compute == base::ComputeType::f64) {
    throw ConfigError("precision.{}={} (precision.compute=f64 sends full values only) use full", name,
                      to_text(wire));
  }
  if (wire == base::WireType::bf16 && compute == base::ComputeType::fp16) {
    throw ConfigError(
        "precision.{}=bf16 (precision.compute=fp16: its numbers take 2 bytes as they are and would only lose "
        "digits) use full",
        name);
  }
}

void check_precision(const RoleConfig& role) {
  const PrecisionSection& precision = role.precision;
  validate(optim::GradientWire{precision.grad_comm, precision.fp8_format, precision.error_feedback},
           role.optim, precision.compute == base::ComputeType::f64);
  check_row_wire("dispatch_comm", precision.dispatch_comm, precision.compute);
  check_row_wire("combine_comm", precision.combine_comm, precision.compute);
  if (precision.combine_comm == base::WireType::fp8) {
    throw ConfigError(
        "precision.combine_comm=fp8 (results are summed over a token's experts and keep more digits) use "
        "full "
        "or bf16");
  }
}

void check_optimizer(const RoleConfig& role, const RunConfig& config) {
  const optim::OptimOptions& optim = role.optim;
  if (optim.min_lr > optim.lr) {
    throw ConfigError("optim.min_lr={} (it is above optim.lr={}) use at most that", optim.min_lr, optim.lr);
  }
  if (is_run(config.command) && optim.warmup_steps > config.train.steps) {
    throw ConfigError("optim.warmup_steps={} (train.steps={}: the warm-up would not end) use at most that",
                      optim.warmup_steps, config.train.steps);
  }
}

void check_batch(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims) {
  if (config.batch.seq > role.model.max_seq) {
    throw ConfigError(
        "batch.seq={} (model.max_seq={} is the longest the model takes) lower it or raise max_seq",
        config.batch.seq, role.model.max_seq);
  }
  if (!trains(config.command)) {
    return;
  }
  if (config.batch.global % dims.dp != 0) {
    throw ConfigError(
        "batch.global={} (not divisible by dp={}, the data-parallel replicas) use a multiple of {}",
        config.batch.global, dims.dp, dims.dp);
  }
  const std::int64_t per_replica = config.batch.global / dims.dp;
  if (role.batch_micro > 0 && per_replica % role.batch_micro != 0) {
    throw ConfigError(
        "batch.micro={} (it does not divide batch.global / dp = {}) use a divisor of that, or 0",
        role.batch_micro, per_replica);
  }
}

void check_vocabulary(const RunConfig& config, const RoleConfig& role) {
  if (role.model.vocab_size == 0 && config.data.tokenizer.empty()) {
    throw ConfigError(
        "model.vocab_size=0 (it stands for the tokenizer's, and data.tokenizer is empty) set one of the "
        "two");
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

void check_role(const RunConfig& config, const RoleConfig& role, int ranks) {
  check_attention(role.model);
  check_experts(role.model, config.command);
  check_precision(role);
  const parallel::ParallelDims dims = resolve_dims(role, ranks);
  check_model_layout(role, dims);
  check_vocabulary(config, role);
  if (trains(config.command)) {
    check_optimizer(role, config);
  }
  if (is_run(config.command)) {
    check_init(role);
  }
  if (config.command != Command::generate) {
    check_batch(config, role, dims);
  }
}

void check_roles(const RunConfig& config, int world_size) {
  const std::vector<int> ranks = resolve_ranks(config, world_size);
  for (std::size_t i = 0; i < config.roles.size(); ++i) {
    if (config.roles.size() == 1) {
      check_role(config, config.roles[i], ranks[i]);
      continue;
    }
    if (!runs(config, config.roles[i])) {
      continue;
    }
    try {
      check_role(config, config.roles[i], ranks[i]);
    } catch (const ConfigError& error) {  // say whose value it is
      throw ConfigError("{}: {}", config.roles[i].name, error.what());
    }
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
  if (config.run.device == DeviceKind::cuda) {
    throw ConfigError("run.device=cuda (this program was built for CPUs) use run.device=cpu");
  }
  if (uses_checkpoint(config.command)) {
    check_source(config);
  }
  if (is_run(config.command)) {
    check_checkpoint(config);
  }
  check_data(config);
  check_roles(config, world_size);
  if (has_students(config.command)) {
    validate_distill(config);
    validate_gap(config, resolve_ranks(config, world_size));
  }
}

}  // namespace athanor::config
