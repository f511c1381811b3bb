#include "model/transformer_block.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "base/activity.hpp"
#include "nn/functional.hpp"

namespace athanor::model {
namespace {

// Residual branches start smaller the deeper the model is (Radford et al. 2019).
double output_std(const TransformerConfig& config) {
  return config.init_std / std::sqrt(2.0 * static_cast<double>(config.layers));
}

std::shared_ptr<parallel::Parameter> add_norm(const std::string& name, std::int64_t width,
                                              parallel::ParameterMap& parameters) {
  parallel::ParameterOptions options;
  options.name = name;
  options.shard = parallel::ShardSpec::whole({width});
  options.decay = parallel::DecayGroup::no_decay;
  options.init = {parallel::InitialValue::Kind::constant, 0.0, 1.0};
  return parameters.add(options);
}

nn::AttentionOptions attention_options(const TransformerConfig& config) {
  nn::AttentionOptions options;
  options.hidden = config.hidden;
  options.heads = config.heads;
  options.kv_heads = config.kv_heads;
  options.head_dim = config.resolved_head_dim();
  options.qk_norm = config.qk_norm;
  options.norm_eps = config.norm_eps;
  options.init_std = config.init_std;
  options.output_init_std = output_std(config);
  options.keep = config.storage.of(nn::ActivationClass::attention);
  return options;
}

}  // namespace

TransformerBlock::TransformerBlock(const TransformerConfig& config, const LayerSpec& spec,
                                   const std::string& prefix, parallel::ParameterMap& parameters,
                                   const parallel::ProcessGrid& grid)
    : prefix_(prefix),
      norm_eps_(config.norm_eps),
      keep_norm_inputs_(config.storage.of(nn::ActivationClass::norm)),
      attention_norm_(add_norm(prefix + "attention_norm.weight", config.hidden, parameters)),
      ffn_norm_(add_norm(prefix + "ffn_norm.weight", config.hidden, parameters)),
      attention_(attention_options(config), prefix + "attention.", parameters, grid) {
  if (spec.ffn == FfnKind::sparse) {
    moe::MoeLayer::Shape shape{config.hidden, config.init_std, output_std(config), config.storage};
    moe_.emplace(config.moe, shape, prefix + "moe.", parameters, grid);
  } else {
    nn::FeedForwardOptions options{config.hidden, config.ffn, config.init_std, output_std(config),
                                   config.storage.of(nn::ActivationClass::ffn)};
    ffn_.emplace(options, prefix + "ffn.", parameters, grid);
  }
}

at::Tensor TransformerBlock::drop(const at::Tensor& x_BsD, const BlockContext& context,
                                  const char* site) const {
  if (context.dropout <= 0.0) {
    return x_BsD;
  }
  nn::DropoutOptions options{context.dropout, context.seed, prefix_ + site};
  return nn::dropout(x_BsD, context.attention.batch->sample_ids_B, context.first_position, options);
}

BlockOutput TransformerBlock::forward(const at::Tensor& x_BsD, const BlockContext& context) const {
  const at::Tensor normed =
      nn::rms_norm(x_BsD, nn::read_weight(attention_norm_), norm_eps_, keep_norm_inputs_);
  nn::QueriesKeys captured;
  nn::AttentionContext attention = context.attention;
  attention.capture = context.capture_attention ? &captured : nullptr;
  const at::Tensor attended = [&] {
    const base::ScopedSpan span(base::SpanKind::compute, "attention");
    return attention_.forward(normed, attention);
  }();
  const at::Tensor middle = x_BsD + drop(attended, context, "attention");
  const at::Tensor ffn_input = nn::rms_norm(middle, nn::read_weight(ffn_norm_), norm_eps_, keep_norm_inputs_);
  if (ffn_) {
    const base::ScopedSpan span(base::SpanKind::compute, "feed-forward");
    return {middle + drop(ffn_->forward(ffn_input), context, "ffn"), at::Tensor(), std::move(captured)};
  }
  moe::MoeOutput sparse = moe_->forward(ffn_input, context.moe);
  return {middle + drop(sparse.y_BsD, context, "moe"), sparse.aux, std::move(captured)};
}

}  // namespace athanor::model
