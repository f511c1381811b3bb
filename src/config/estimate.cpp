#include "config/estimate.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "config/distill_plan.hpp"
#include "config/recording_plan.hpp"
#include "config/validate.hpp"
#include "config/value_text.hpp"
#include "nn/vocab_parallel.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::config {
namespace {

bool trains(const RunConfig& config, const RoleConfig& role) {
  const bool is_training = config.command == Command::train || has_students(config.command) ||
                           config.command == Command::bench_step;
  return is_training && !role.frozen;
}

std::int64_t compute_bytes(base::ComputeType type) {
  switch (type) {
    case base::ComputeType::f32:
      return 4;
    case base::ComputeType::bf16:
      return 2;
    case base::ComputeType::fp16:
      return 2;
    case base::ComputeType::f64:
      return 8;
  }
  return 8;
}

std::int64_t accumulation_bytes(base::ComputeType type) {
  return type == base::ComputeType::f64 ? 8 : 4;
}

// The largest of `parts` blocks of `total`.
std::int64_t share(std::int64_t total, std::int64_t parts) {
  return (total + parts - 1) / parts;
}

// Numbers that the backward pass of one layer needs for one token, in compute-type elements: inputs of the
// two norms and of the matrices, q, k, v and the attention's result; for each choice the dispatched row,
// gate_up, its activation and the expert's result.
std::int64_t layer_activations_per_token(const model::TransformerConfig& model, const model::LayerSpec& layer,
                                         int tp) {
  const std::int64_t attention =
      share(model.resolved_head_dim() * (2 * model.heads + 2 * model.kv_heads), tp);
  const std::int64_t common = 6 * model.hidden + 3 * attention;
  if (layer.ffn == model::FfnKind::dense) {
    return common + 3 * model.ffn;
  }
  const moe::MoeOptions& moe = model.moe;
  const std::int64_t routed = moe.top_k * (2 * model.hidden + 3 * moe.ffn) + 4 * moe.num_experts;
  return common + routed + 3 * moe.shared_experts * moe.ffn;
}

std::int64_t activation_elements(const model::TransformerConfig& model, std::int64_t tokens, int tp,
                                 bool training) {
  std::int64_t all = 0;
  std::int64_t largest = 0;
  for (const model::LayerSpec& layer : model::resolve_layers(model)) {
    const std::int64_t one = layer_activations_per_token(model, layer, tp);
    all += one;
    largest = std::max(largest, one);
  }
  if (!training || model.recompute) {  // one layer at a time; recomputation keeps the inputs
    all = largest + (training ? model.layers * model.hidden : 0);
  }
  return all * share(tokens, tp);
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

MemoryEstimate estimate_memory(const RunConfig& config, const RoleConfig& role,
                               const parallel::ParallelDims& dims) {
  const RankParameters count = count_rank_parameters(role.model, dims);
  const std::int64_t element = compute_bytes(role.precision.compute);
  const std::int64_t accumulator = accumulation_bytes(role.precision.compute);
  MemoryEstimate bytes;
  bytes.parameters = count.total() * element;
  if (trains(config, role)) {
    bytes.gradients = count.total() * accumulator * (role.precision.error_feedback ? 2 : 1);
    std::int64_t owned = count.total();
    if (role.optim.zero == 1) {
      const std::int64_t key_value_holders =
          dims.dp * std::max<std::int64_t>(dims.tp / role.model.kv_heads, 1);
      owned = share(count.tensor_sharded, dims.dp) + share(count.key_value, key_value_holders) +
              share(count.replicated, dims.dp * dims.tp) + share(count.expert, dims.dp * dims.tp / dims.ep);
    }
    bytes.optimizer = owned * accumulator * (element == accumulator ? 2 : 3);
  }
  if (config.command == Command::generate) {
    // Keys and values of the longest text; one token passes at a time, all of a prompt in the worst case.
    const std::int64_t key_values =
        2 * role.model.layers * role.model.resolved_head_dim() *
        share(role.model.kv_heads, std::min<std::int64_t>(dims.tp, role.model.kv_heads));
    bytes.activations = config.generate.beams * role.model.max_seq * key_values * element;
  }
  const std::int64_t rows = config.command == Command::generate ? 1 : resolve_micro_batch(config, role, dims);
  const std::int64_t tokens =
      rows * (config.command == Command::generate ? role.model.max_seq : config.batch.seq);
  bytes.activations += activation_elements(role.model, tokens, dims.tp, trains(config, role)) * element;
  const std::int64_t chunk = std::min<std::int64_t>(nn::CrossEntropyOptions{}.chunk_tokens, tokens);
  bytes.logits = 2 * chunk * share(role.model.vocab_size, dims.tp) * accumulator;
  bytes.link = link_memory(config, role, dims);
  return bytes;
}

std::string describe_plan(const RunConfig& config, const RoleConfig& role,
                          const parallel::ParallelDims& dims) {
  const model::ParameterCount count = model::count_parameters(role.model);
  const MemoryEstimate bytes = estimate_memory(config, role, dims);
  std::string text =
      fmt::format("{}: {} ranks = dp {} x tp {}, ep {} (expert-data {}){}\n", role.name, dims.num_ranks(),
                  dims.dp, dims.tp, dims.ep, dims.num_ranks() / dims.ep, role.frozen ? ", frozen" : "");
  text += fmt::format("parameters: {:.2f} M total, {:.2f} M active for a token, {:.2f} M on a rank\n",
                      static_cast<double>(count.total) / 1e6, static_cast<double>(count.active) / 1e6,
                      static_cast<double>(count_rank_parameters(role.model, dims).total()) / 1e6);
  if (trains(config, role) || role.frozen) {
    const std::int64_t micro = resolve_micro_batch(config, role, dims);
    text +=
        fmt::format("batch: {} sequences of {} tokens a step; a replica takes {} in micro-batches of {}\n",
                    config.batch.global, config.batch.seq, config.batch.global / dims.dp, micro);
    if (role.model.moe.num_experts > 0 && role.model.moe.balance_counts == moe::BalanceCounts::micro_step) {
      text +=
          fmt::format("moe.balance_counts=micro_step: the balance gradient depends on dp x micro = {} x {}\n",
                      dims.dp, micro);
    }
  }
  text += fmt::format(
      "memory of a rank (estimated): {} = parameters {} + gradients {} + optimizer {} + activations {} + "
      "logits {} + program {}{}\n",
      megabytes(bytes.total()), megabytes(bytes.parameters), megabytes(bytes.gradients),
      megabytes(bytes.optimizer), megabytes(bytes.activations), megabytes(bytes.logits),
      megabytes(bytes.program), bytes.link > 0 ? " + signals " + megabytes(bytes.link) : "");
  if (has_students(config.command) && role.kind == parallel::RoleKind::student) {
    text += describe_link(config, role);
  }
  return text;
}

void check_memory(const MemoryEstimate& estimate, std::int64_t available_bytes, int local_ranks) {
  if (estimate.total() > available_bytes / local_ranks) {
    throw base::ConfigError(
        "no memory for the model (a rank needs about {}; {} are free for {} ranks of this machine) "
        "use more ranks or machines, a smaller batch.micro, model.recompute=true, or a smaller model",
        megabytes(estimate.total()), megabytes(available_bytes), local_ranks);
  }
}

}  // namespace athanor::config
