// The shape of a decoder-only transformer and the list of layers it resolves to.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/moe_options.hpp"
#include "nn/activation_storage.hpp"

namespace athanor::model {

/// `model.*` and `moe.*` of one role.
struct TransformerConfig {
  std::int64_t vocab_size = 0;  ///< 0: the tokenizer's
  std::int64_t layers = 4;
  std::int64_t hidden = 256;
  std::int64_t heads = 8;
  std::int64_t kv_heads = 4;
  std::int64_t head_dim = 0;  ///< 0: hidden / heads
  bool qk_norm = true;
  double rope_theta = 10000.0;
  std::int64_t max_seq = 2048;
  bool tie_embeddings = false;
  double norm_eps = 1e-6;
  std::int64_t ffn = 1024;  ///< inner width of dense layers
  double dropout = 0.0;
  bool recompute = false;  ///< keep only each block's input and run the block again in backward
  double init_std = 0.02;
  nn::ActivationStorage storage;  ///< not from `model.*` but from `precision.*`
  moe::MoeOptions moe;

  std::int64_t resolved_head_dim() const { return head_dim > 0 ? head_dim : hidden / heads; }
};

enum class AttentionKind { causal };
enum class FfnKind { dense, sparse };

/// One layer: what it computes and which parameters it uses. Layers with the same parameter-set id share
/// tensors.
struct LayerSpec {
  AttentionKind attention = AttentionKind::causal;
  FfnKind ffn = FfnKind::dense;
  std::int64_t parameter_set = 0;
};

/// The layer list of a config: layer i is sparse when experts > 0 and (i + 1) % moe.every == 0; parameter set
/// i.
std::vector<LayerSpec> resolve_layers(const TransformerConfig& config);

/// Elements of all parameters, and of those one token uses (top_k experts of a sparse layer; embedding
/// counted once).
struct ParameterCount {
  std::int64_t total = 0;
  std::int64_t active = 0;
};
ParameterCount count_parameters(const TransformerConfig& config);

}  // namespace athanor::model
