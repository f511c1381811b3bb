// One pre-norm layer: x + attention(norm(x)), then x + ffn(norm(x)) with a dense or a sparse ffn.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "model/recompute.hpp"
#include "model/transformer_config.hpp"
#include "moe/moe_layer.hpp"
#include "nn/attention.hpp"
#include "nn/feed_forward.hpp"

namespace athanor::model {

/// What a block needs besides x.
struct BlockContext {
  nn::AttentionContext attention;
  moe::MoeContext moe;   ///< used by sparse layers
  double dropout = 0.0;  ///< 0 outside training
  std::uint64_t seed = 0;
  std::int64_t first_position = 0;  ///< position of x's first column (sequence parallel)
  bool capture_attention = false;   ///< whether the output carries queries and keys
};

/// Parameters under `prefix`: attention_norm.weight, attention.*, ffn_norm.weight, ffn.* or moe.*.
class TransformerBlock {
 public:
  TransformerBlock(const TransformerConfig& config, const LayerSpec& spec, const std::string& prefix,
                   parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);
  /// x [B, s, D] -> [B, s, D]. Collective over tp, and over ep when sparse; forward and backward.
  BlockOutput forward(const at::Tensor& x_BsD, const BlockContext& context) const;

 private:
  at::Tensor drop(const at::Tensor& x_BsD, const BlockContext& context, const char* site) const;

  std::string prefix_;
  double norm_eps_ = 1e-6;
  nn::Keep keep_norm_inputs_;
  std::shared_ptr<parallel::Parameter> attention_norm_, ffn_norm_;
  nn::CausalAttention attention_;
  std::optional<nn::FeedForward> ffn_;
  std::optional<moe::MoeLayer> moe_;
};

}  // namespace athanor::model
