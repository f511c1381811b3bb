#include "model/hf_names.hpp"

#include <fmt/format.h>

#include <utility>

#include "base/error.hpp"

namespace athanor::model {
namespace {

std::int64_t product(const std::vector<std::int64_t>& shape) {
  std::int64_t numel = 1;
  for (const std::int64_t extent : shape) {
    numel *= extent;
  }
  return numel;
}

// Collects the tensors of one of our parameters after the other.
class TensorList {
 public:
  /// The parts of parameter `name`, in the order in which they lie in it.
  void add(const std::string& name, const std::vector<ParameterShape>& parts) {
    std::int64_t first = 0;
    for (const ParameterShape& part : parts) {
      tensors_.push_back({part.name, part.shape, name, first});
      first += part.numel();
    }
  }
  std::vector<HfTensor> take() { return std::move(tensors_); }

 private:
  std::vector<HfTensor> tensors_;
};

void add_attention(const TransformerConfig& config, const std::string& ours, const std::string& theirs,
                   TensorList& list) {
  const std::int64_t width = config.resolved_head_dim();
  const std::vector<std::int64_t> kv_shape = {config.kv_heads * width, config.hidden};
  list.add(ours + "q.weight", {{theirs + "q_proj.weight", {config.heads * width, config.hidden}}});
  list.add(ours + "kv.weight", {{theirs + "k_proj.weight", kv_shape}, {theirs + "v_proj.weight", kv_shape}});
  list.add(ours + "o.weight", {{theirs + "o_proj.weight", {config.hidden, config.heads * width}}});
  list.add(ours + "q_norm.weight", {{theirs + "q_norm.weight", {width}}});
  list.add(ours + "k_norm.weight", {{theirs + "k_norm.weight", {width}}});
}

void add_dense_ffn(const TransformerConfig& config, const std::string& ours, const std::string& theirs,
                   TensorList& list) {
  const std::vector<std::int64_t> shape = {config.ffn, config.hidden};
  list.add(ours + "gate_up.weight",
           {{theirs + "gate_proj.weight", shape}, {theirs + "up_proj.weight", shape}});
  list.add(ours + "down.weight", {{theirs + "down_proj.weight", {config.hidden, config.ffn}}});
}

void add_experts(const TransformerConfig& config, HfExpertNames names, const std::string& ours,
                 const std::string& theirs, TensorList& list) {
  const moe::MoeOptions& moe = config.moe;
  if (names == HfExpertNames::fused) {
    list.add(ours + "gate_up", {{theirs + "gate_up_proj", {moe.num_experts, 2 * moe.ffn, config.hidden}}});
    list.add(ours + "down", {{theirs + "down_proj", {moe.num_experts, config.hidden, moe.ffn}}});
    return;
  }
  std::vector<ParameterShape> gate_up;
  std::vector<ParameterShape> down;
  for (std::int64_t expert = 0; expert < moe.num_experts; ++expert) {
    const std::string prefix = fmt::format("{}{}.", theirs, expert);
    gate_up.push_back({prefix + "gate_proj.weight", {moe.ffn, config.hidden}});
    gate_up.push_back({prefix + "up_proj.weight", {moe.ffn, config.hidden}});
    down.push_back({prefix + "down_proj.weight", {config.hidden, moe.ffn}});
  }
  list.add(ours + "gate_up", gate_up);
  list.add(ours + "down", down);
}

}  // namespace

std::int64_t ParameterShape::numel() const {
  return product(shape);
}

std::int64_t HfTensor::numel() const {
  return product(shape);
}

std::vector<ParameterShape> parameter_shapes(const TransformerConfig& config) {
  const std::int64_t width = config.resolved_head_dim();
  const moe::MoeOptions& moe = config.moe;
  std::vector<ParameterShape> shapes = {{"embedding.weight", {config.vocab_size, config.hidden}}};
  const std::vector<LayerSpec> layers = resolve_layers(config);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string prefix = fmt::format("layers.{}.", i);
    shapes.push_back({prefix + "attention_norm.weight", {config.hidden}});
    shapes.push_back({prefix + "ffn_norm.weight", {config.hidden}});
    shapes.push_back({prefix + "attention.q.weight", {config.heads * width, config.hidden}});
    shapes.push_back({prefix + "attention.kv.weight", {2, config.kv_heads * width, config.hidden}});
    shapes.push_back({prefix + "attention.o.weight", {config.hidden, config.heads * width}});
    shapes.push_back({prefix + "attention.q_norm.weight", {width}});
    shapes.push_back({prefix + "attention.k_norm.weight", {width}});
    if (layers[i].ffn == FfnKind::sparse) {
      shapes.push_back({prefix + "moe.router.weight", {moe.num_experts, config.hidden}});
      shapes.push_back({prefix + "moe.experts.gate_up", {moe.num_experts, 2 * moe.ffn, config.hidden}});
      shapes.push_back({prefix + "moe.experts.down", {moe.num_experts, config.hidden, moe.ffn}});
    } else {
      shapes.push_back({prefix + "ffn.gate_up.weight", {2, config.ffn, config.hidden}});
      shapes.push_back({prefix + "ffn.down.weight", {config.hidden, config.ffn}});
    }
  }
  shapes.push_back({"final_norm.weight", {config.hidden}});
  if (!config.tie_embeddings) {
    shapes.push_back({"head.weight", {config.vocab_size, config.hidden}});
  }
  return shapes;
}

std::vector<HfTensor> hf_tensors(const TransformerConfig& config, HfExpertNames experts) {
  TensorList list;
  const std::vector<std::int64_t> table = {config.vocab_size, config.hidden};
  list.add("embedding.weight", {{"model.embed_tokens.weight", table}});
  const std::vector<LayerSpec> layers = resolve_layers(config);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string ours = fmt::format("layers.{}.", i);
    const std::string theirs = "model." + ours;
    list.add(ours + "attention_norm.weight", {{theirs + "input_layernorm.weight", {config.hidden}}});
    list.add(ours + "ffn_norm.weight", {{theirs + "post_attention_layernorm.weight", {config.hidden}}});
    add_attention(config, ours + "attention.", theirs + "self_attn.", list);
    if (layers[i].ffn == FfnKind::sparse) {
      list.add(ours + "moe.router.weight",
               {{theirs + "mlp.gate.weight", {config.moe.num_experts, config.hidden}}});
      add_experts(config, experts, ours + "moe.experts.", theirs + "mlp.experts.", list);
    } else {
      add_dense_ffn(config, ours + "ffn.", theirs + "mlp.", list);
    }
  }
  list.add("final_norm.weight", {{"model.norm.weight", {config.hidden}}});
  if (!config.tie_embeddings) {
    list.add("head.weight", {{"lm_head.weight", table}});
  }
  return list.take();
}

std::int64_t count_hf_tensors(const TransformerConfig& config, HfExpertNames experts) {
  std::int64_t count = config.tie_embeddings ? 2 : 3;
  for (const LayerSpec& layer : resolve_layers(config)) {
    const bool sparse = layer.ffn == FfnKind::sparse;
    const std::int64_t matrices = experts == HfExpertNames::fused ? 2 : 3 * config.moe.num_experts;
    count += 2 + 6 + (sparse ? 1 + matrices : 3);
  }
  return count;
}

}  // namespace athanor::model
