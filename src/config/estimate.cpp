#include "config/estimate.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/log.hpp"
#include "config/distill_plan.hpp"
#include "config/recording_plan.hpp"
#include "config/validate.hpp"
#include "config/value_text.hpp"

namespace athanor::config {
namespace {

// The largest of `parts` blocks of `total`.
std::int64_t share(std::int64_t total, std::int64_t parts) {
  return (total + parts - 1) / parts;
}

std::string megabytes(std::int64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

std::string describe_link(const RunConfig& config, const RoleConfig& student) {
  const SignalBytes bytes = signal_bytes(config, student);
  const std::int64_t tokens = config.batch.global * config.batch.seq;
  if (is_replay(config)) {
    return fmt::format("signals: read from {}\n", config.distill.source);
  }
  return fmt::format(
      "signals: at most {} bytes a token = distribution {} + hidden states {} + attention {} + loss {}, and "
      "{} "
      "a step for the head; {} a step, window of {} steps\n",
      bytes.per_token(), bytes.payload, bytes.hidden, bytes.attention, bytes.loss, megabytes(bytes.head),
      megabytes(tokens * bytes.per_token() + bytes.head), config.distill.window);
}

std::string line(std::string_view name, std::int64_t bytes) {
  return fmt::format("  {:<36} {:>14}\n", name, megabytes(bytes));
}

std::string describe_memory(const MemoryPlan& plan, bool is_sparse) {
  std::string text = fmt::format("memory of a rank (estimated): {}, of which\n", megabytes(plan.total()));
  for (const auto& [name, bytes] : plan.parts()) {
    text += bytes > 0 ? line(name, bytes) : "";
  }
  for (std::size_t i = 0; i < num_activation_kinds; ++i) {
    const std::int64_t bytes = plan.activations.at_peak[i];
    text += bytes > 0 ? line(fmt::format("  of which {}", activation_names[i]), bytes) : "";
  }
  if (is_sparse) {
    text += line("all tokens to one rank: activations", plan.worst.peak);
    text += line("all tokens to one rank: in total", plan.worst_total());
  }
  return text;
}

std::string describe_traffic(const TrafficPlan& plan, int ranks) {
  if (plan.exchanges.empty()) {
    return "";
  }
  std::string text =
      fmt::format("sent in a step (even routing)          {:>14} {:>14}  of a rank to other nodes\n",
                  "a rank", "all ranks");
  for (int kind = 0; kind < parallel::num_traffic_kinds; ++kind) {
    const auto purpose = static_cast<parallel::Traffic>(kind);
    double away = 0.0;
    for (const Exchange& exchange : plan.exchanges) {
      away += exchange.purpose == purpose
                  ? static_cast<double>(exchange.bytes) * exchange.between_nodes / ranks
                  : 0.0;
    }
    if (const std::int64_t bytes = plan.bytes(purpose); bytes > 0) {
      text += fmt::format("  {:<36} {:>14} {:>14} {:>14}\n",
                          parallel::traffic_names[static_cast<std::size_t>(kind)], megabytes(bytes / ranks),
                          megabytes(bytes), megabytes(static_cast<std::int64_t>(away)));
    }
  }
  return text;
}

std::string describe_time(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims,
                          const TrafficPlan& traffic) {
  const TimePlan time = plan_time(config, role, dims, traffic);
  std::string text = fmt::format("products of a step: {:.4g} FLOP on all ranks, {:.4g} on one\n", time.flops,
                                 time.rank_flops);
  if (config.plan.flops_per_s == 0.0) {
    return text;
  }
  const TimePlan hidden = plan_time(config, role, dims, with_all_overlap(traffic));
  const double tokens = static_cast<double>(config.batch.global * config.batch.seq);
  return text +
         fmt::format(
             "expected time of a step: {:.4g} s = products {:.4g} + exchanges in nodes {:.4g} + between "
             "nodes {:.4g}; {:.4g} s with the overlap that is switched on, {:.4g} s with all of it; {:.0f} "
             "to {:.0f} tokens/s\n",
             time.serial_s(), time.compute_s, time.node_s, time.link_s, time.overlapped_s(),
             hidden.overlapped_s(), tokens / time.serial_s(), tokens / hidden.overlapped_s());
}

std::string describe_batch(const RunConfig& config, const RoleConfig& role,
                           const parallel::ParallelDims& dims) {
  const std::int64_t micro = resolve_micro_batch(config, role, dims);
  std::string text =
      fmt::format("batch: {} sequences of {} tokens a step; a replica takes {} in micro-batches of {}\n",
                  config.batch.global, config.batch.seq, config.batch.global / dims.dp, micro);
  if (role.model.moe.num_experts > 0 && role.model.moe.balance_counts == moe::BalanceCounts::micro_step) {
    text +=
        fmt::format("moe.balance_counts=micro_step: the balance gradient depends on dp x micro = {} x {}\n",
                    dims.dp, micro);
  }
  return text;
}

// Whether the command takes `plan.*`.
bool has_plan_keys(Command command) {
  return command != Command::evaluate && command != Command::generate;
}

}  // namespace

RankParameters count_rank_parameters(const model::TransformerConfig& config,
                                     const parallel::ParallelDims& dims) {
  RankParameters count;
  const std::int64_t hidden = config.hidden;
  const std::int64_t head_dim = config.resolved_head_dim();
  const std::int64_t tp = dims.tp;
  count.tensor_sharded = share(config.vocab_size, tp) * hidden * (config.tie_embeddings ? 1 : 2);
  count.replicated = hidden;
  for (const model::LayerSpec& layer : model::resolve_layers(config)) {
    count.tensor_sharded += 2 * hidden * head_dim * (config.heads / tp);
    count.key_value +=
        2 * hidden * head_dim * (config.kv_heads / std::min<std::int64_t>(tp, config.kv_heads));
    count.replicated += 2 * hidden + (config.qk_norm ? 2 * head_dim : 0);
    if (layer.ffn == model::FfnKind::dense) {
      count.tensor_sharded += 3 * hidden * share(config.ffn, tp);
      continue;
    }
    const moe::MoeOptions& moe = config.moe;
    count.replicated += hidden * moe.num_experts;
    count.expert += 3 * hidden * moe.ffn * (moe.num_experts / dims.ep);
    count.tensor_sharded += 3 * hidden * share(moe.shared_experts * moe.ffn, tp);
  }
  return count;
}

std::string describe_plan(const RunConfig& config, const RoleConfig& role,
                          const parallel::ParallelDims& dims) {
  const model::ParameterCount count = model::count_parameters(role.model);
  std::string text =
      fmt::format("{}: {} ranks = dp {} x tp {}, ep {} (expert-data {}){}\n", role.name, dims.num_ranks(),
                  dims.dp, dims.tp, dims.ep, dims.num_ranks() / dims.ep, role.frozen ? ", frozen" : "");
  text += fmt::format("parameters: {:.2f} M total, {:.2f} M active for a token, {:.2f} M on a rank\n",
                      static_cast<double>(count.total) / 1e6, static_cast<double>(count.active) / 1e6,
                      static_cast<double>(count_rank_parameters(role.model, dims).total()) / 1e6);
  const bool has_steps = is_trained(config, role) || role.frozen;
  text += has_steps ? describe_batch(config, role, dims) : "";
  text += describe_memory(plan_memory(config, role, dims), role.model.moe.num_experts > 0 && dims.ep > 1);
  if (has_steps) {
    const TrafficPlan traffic = plan_traffic(config, role, dims);
    text += describe_traffic(traffic, dims.num_ranks()) + describe_time(config, role, dims, traffic);
  }
  if (has_students(config.command) && role.kind == parallel::RoleKind::student) {
    text += describe_link(config, role);
  }
  return text;
}

std::int64_t rank_memory(const RunConfig& config, std::int64_t available_bytes, int local_ranks) {
  return config.plan.memory_bytes > 0.0 ? static_cast<std::int64_t>(config.plan.memory_bytes)
                                        : available_bytes / local_ranks;
}

void check_memory(const RunConfig& config, const MemoryPlan& plan, std::int64_t available_bytes,
                  int local_ranks) {
  const std::int64_t limit = rank_memory(config, available_bytes, local_ranks);
  const std::string have =
      config.plan.memory_bytes > 0.0
          ? fmt::format("plan.memory_bytes gives it {}", megabytes(limit))
          : fmt::format("{} are free for {} ranks of this machine", megabytes(available_bytes), local_ranks);
  if (plan.total() > limit) {
    throw base::ConfigError(
        "no memory for the model (a rank needs about {}; {}) "
        "use more ranks or machines, a smaller batch.micro, model.recompute=true, or a smaller model",
        megabytes(plan.total()), have);
  }
  if (plan.worst_total() <= limit || !has_plan_keys(config.command)) {
    return;
  }
  const std::string what =
      fmt::format("a rank needs about {}, but {} when the router sends every token to one rank; {}",
                  megabytes(plan.total()), megabytes(plan.worst_total()), have);
  if (config.plan.worst_case == WorstCase::refuse) {
    throw base::ConfigError(
        "no memory for the worst routing ({}) limit it with moe.capacity_factor, use a smaller batch.micro, "
        "a smaller parallel.ep or model.recompute=true, or start all the same with plan.worst_case=warn",
        what);
  }
  base::log_warning("{}: such a step would end the job for lack of memory", what);
}

}  // namespace athanor::config
