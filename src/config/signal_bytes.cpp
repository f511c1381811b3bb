// What the link carries and keeps, by the formulae of the codecs.
#include <algorithm>

#include "base/error.hpp"
#include "config/distill_plan.hpp"
#include "config/estimate.hpp"
#include "config/recording_plan.hpp"
#include "distill/signal_gap.hpp"

namespace athanor::config {
namespace {

using distill::LayerPair;
using distill::Phase;

std::int64_t payload_bytes(const RunConfig& config, const Phase& phase, std::int64_t full_bytes) {
  const RoleConfig& teacher = config.roles.front();
  const distill::CodecOptions& codec = phase.codec;
  std::vector<double> in_use = phase.temperature.in_use(0, train_domains(config));
  distill::add_temperatures(in_use, record_temperatures(config));
  const auto temperatures = static_cast<std::int64_t>(in_use.size());
  switch (codec.kind) {
    case distill::PayloadKind::none:
      return 0;
    case distill::PayloadKind::full:
      return distill::full_bytes_per_token(teacher.model.vocab_size,
                                           compute_bytes(teacher.precision.compute));
    case distill::PayloadKind::hidden:
      return teacher.model.hidden * compute_bytes(teacher.precision.compute);
    case distill::PayloadKind::topk:
      return distill::topk_bytes_per_token(codec.top_k, temperatures, full_bytes);
    case distill::PayloadKind::sampled:
      return distill::sampled_bytes_per_token(codec.samples, temperatures, full_bytes);
  }
  throw base::InternalError("no such codec");
}

// Whether every stage's payload is divided over tensor-parallel ranks.
bool payload_is_sliced(const RunConfig& config) {
  const std::vector<Phase> phases = make_phases(config);
  return std::ranges::all_of(phases, [](const Phase& phase) {
    return !phase.uses_kd() || phase.codec.kind == distill::PayloadKind::full;
  });
}

}  // namespace

SignalBytes signal_bytes(const RunConfig& config, const RoleConfig& student) {
  const DistillSection& section = config.distill;
  const RoleConfig& teacher = config.roles.front();
  const model::TransformerConfig& model = teacher.model;
  const std::int64_t full_bytes = teacher.precision.compute == base::ComputeType::f64 ? 8 : 4;
  const auto layers_of = [](std::vector<LayerPair> pairs) {  // a layer in two pairs travels once
    std::sort(pairs.begin(), pairs.end(),
              [](const LayerPair& a, const LayerPair& b) { return a.teacher_layer < b.teacher_layer; });
    const auto end = std::unique(pairs.begin(), pairs.end(), [](const LayerPair& a, const LayerPair& b) {
      return a.teacher_layer == b.teacher_layer;
    });
    return static_cast<std::int64_t>(end - pairs.begin());
  };
  SignalBytes bytes;
  for (const Phase& phase : make_phases(config)) {
    if (!phase.uses_kd()) {
      continue;
    }
    bytes.payload = std::max(bytes.payload, payload_bytes(config, phase, full_bytes));
    if (phase.codec.kind == distill::PayloadKind::hidden && !teacher.frozen) {
      bytes.head =
          distill::head_bytes(model.vocab_size, model.hidden, compute_bytes(teacher.precision.compute));
    }
  }
  bytes.hidden = layers_of(hidden_pairs(config, student)) *
                 distill::state_bytes_per_token(model.hidden, section.hidden_wire, full_bytes);
  bytes.attention =
      layers_of(attention_pairs(config, student)) *
      distill::attention_bytes_per_token(model.heads, model.kv_heads, model.resolved_head_dim(),
                                         base::WireType::full, compute_bytes(teacher.precision.compute));
  bytes.loss = full_bytes;
  if (section.gap_every > 0) {
    bytes.gap = config.batch.global * distill::num_measured(config.batch.seq, section.gap_fraction) *
                model.vocab_size * compute_bytes(teacher.precision.compute);
  }
  return bytes;
}

std::int64_t link_memory(const RunConfig& config, const RoleConfig& role,
                         const parallel::ParallelDims& dims) {
  if (!has_students(config.command)) {
    return 0;
  }
  const auto share = [](std::int64_t total, std::int64_t parts) { return (total + parts - 1) / parts; };
  const std::int64_t tokens = share(config.batch.global, dims.dp) * config.batch.seq;
  const std::int64_t ranks = dims.num_ranks();
  if (role.kind == parallel::RoleKind::teacher) {
    // Each rank sends its block of positions or columns.
    std::int64_t sent = 0;
    for (std::size_t i = 1; i < config.roles.size(); ++i) {
      const SignalBytes bytes = signal_bytes(config, config.roles[i]);
      sent += share(tokens * bytes.per_token(), dims.tp) + share(bytes.head + bytes.gap, ranks);
    }
    return config.distill.window * sent;
  }
  const SignalBytes bytes = signal_bytes(config, role);
  const std::int64_t received = tokens * share(bytes.payload, payload_is_sliced(config) ? dims.tp : 1) +
                                share(tokens * (bytes.hidden + bytes.attention), dims.tp) +
                                tokens * bytes.loss + share(bytes.head, dims.tp) + share(bytes.gap, ranks);
  if (is_replay(config)) {
    return received;
  }
  const std::int64_t replayed = config.command == Command::bench_stream ? 1 : 0;
  // Packets of the window, and the step that is consumed.
  return (config.distill.window + 1 + replayed) * received;
}

}  // namespace athanor::config
