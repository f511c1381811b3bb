#include "config/role_checks.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "config/init_layers.hpp"
#include "config/recording_plan.hpp"
#include "config/roles.hpp"
#include "config/storage_checks.hpp"
#include "config/validate.hpp"
#include "config/value_text.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;

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
  if (moe.dispatch_chunks > moe.num_experts / dims.ep) {
    throw ConfigError(
        "moe.dispatch_chunks={} (a chunk is of some of a rank's moe.experts / parallel.ep = {} experts) give "
        "1 "
        "to {}",
        moe.dispatch_chunks, moe.num_experts / dims.ep, moe.num_experts / dims.ep);
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
  validate(optim::GradientWire{precision.grad_comm, precision.fp8_format, precision.error_feedback,
                               precision.store_gradients},
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

void check_trace(const RunConfig& config) {
  const auto& train = config.train;
  if (train.trace > train.steps) {
    throw ConfigError("train.trace={} (train.steps={}: there are not so many steps) use at most that",
                      train.trace, train.steps);
  }
  if (train.trace == 0 && train.trace_from > 0) {
    throw ConfigError("train.trace_from={} (train.trace=0: no steps are traced) set train.trace too",
                      train.trace_from);
  }
  if (train.trace_from > train.steps) {
    throw ConfigError("train.trace_from={} (train.steps={}: the job ends before) use at most that",
                      train.trace_from, train.steps);
  }
}

void check_batch(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims) {
  if (config.batch.seq > role.model.max_seq) {
    throw ConfigError(
        "batch.seq={} (model.max_seq={} is the longest the model takes) lower it or raise max_seq",
        config.batch.seq, role.model.max_seq);
  }
  if (!takes_steps(config.command)) {
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

void check_role(const RunConfig& config, const RoleConfig& role, int ranks) {
  check_attention(role.model);
  check_experts(role.model, config.command);
  check_precision(role);
  const parallel::ParallelDims dims = resolve_dims(role, ranks);
  check_model_layout(role, dims);
  check_vocabulary(config, role);
  if (takes_steps(config.command)) {
    check_optimizer(role, config);
  }
  if (is_run(config.command)) {
    check_init(role);
    check_trace(config);
  }
  if (config.command != Command::generate) {
    check_batch(config, role, dims);
  }
  if (takes_steps(config.command)) {
    check_storage(config, role, dims);
  }
}

}  // namespace

bool is_run(Command command) {
  return command == Command::train || command == Command::distill;
}

bool takes_steps(Command command) {
  return is_run(command) || command == Command::bench_step || command == Command::bench_checkpoint ||
         command == Command::bench_stream || command == Command::bench_dispatch ||
         command == Command::bench_kernels;
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

}  // namespace athanor::config
