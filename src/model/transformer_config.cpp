#include "model/transformer_config.hpp"

#include <set>

namespace athanor::model {
namespace {

std::int64_t attention_numel(const TransformerConfig& config) {
  const std::int64_t head_dim = config.resolved_head_dim();
  const std::int64_t projections = config.hidden * head_dim * (2 * config.heads + 2 * config.kv_heads);
  return projections + (config.qk_norm ? 2 * head_dim : 0);
}

std::int64_t ffn_numel(std::int64_t hidden, std::int64_t ffn) {
  return 3 * hidden * ffn;
}

// Elements of a sparse layer when `num_experts` of its experts are counted.
std::int64_t moe_numel(const TransformerConfig& config, std::int64_t num_experts) {
  const moe::MoeOptions& moe = config.moe;
  return config.hidden * moe.num_experts + num_experts * ffn_numel(config.hidden, moe.ffn) +
         ffn_numel(config.hidden, moe.shared_experts * moe.ffn);
}

}  // namespace

std::vector<LayerSpec> resolve_layers(const TransformerConfig& config) {
  std::vector<LayerSpec> layers;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    LayerSpec spec;
    const bool sparse = config.moe.num_experts > 0 && (i + 1) % config.moe.every == 0;
    spec.ffn = sparse ? FfnKind::sparse : FfnKind::dense;
    spec.parameter_set = i;
    layers.push_back(spec);
  }
  return layers;
}

ParameterCount count_parameters(const TransformerConfig& config) {
  ParameterCount count;
  const std::int64_t embeddings = config.vocab_size * config.hidden * (config.tie_embeddings ? 1 : 2);
  count.total = embeddings + config.hidden;  // and the final norm
  count.active = count.total;
  std::set<std::int64_t> seen_sets;
  for (const LayerSpec& layer : resolve_layers(config)) {
    if (!seen_sets.insert(layer.parameter_set).second) {
      continue;
    }
    const std::int64_t common = attention_numel(config) + 2 * config.hidden;
    const bool sparse = layer.ffn == FfnKind::sparse;
    count.total +=
        common + (sparse ? moe_numel(config, config.moe.num_experts) : ffn_numel(config.hidden, config.ffn));
    count.active +=
        common + (sparse ? moe_numel(config, config.moe.top_k) : ffn_numel(config.hidden, config.ffn));
  }
  return count;
}

}  // namespace athanor::model
