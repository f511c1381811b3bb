#include "model/transformer.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "model/transformer_block.hpp"
#include "moe/balance_loss.hpp"
#include "nn/functional.hpp"
#include "parallel/autograd/functions.hpp"

namespace athanor::model {

struct Transformer::Parts {
  TransformerConfig config;
  std::vector<LayerSpec> layers;
  Range range;
  const parallel::ProcessGrid* grid = nullptr;
  at::ScalarType compute = at::kFloat;
  std::vector<TransformerBlock> blocks;
  std::optional<nn::VocabParallelEmbedding> embedding;
  std::shared_ptr<parallel::Parameter> head;
  std::shared_ptr<parallel::Parameter> final_norm;
  std::vector<std::int64_t> sparse_sets;  // sparse layer index -> parameter set
  std::int64_t num_sets = 0;
};

namespace {

void check_shape(const TransformerConfig& config) {
  if (config.vocab_size <= 0) {
    throw base::ConfigError("model.vocab_size is {} (it must be positive) set it or give a tokenizer",
                            config.vocab_size);
  }
  if (config.layers <= 0 || config.hidden <= 0 || config.heads <= 0 || config.kv_heads <= 0) {
    throw base::ConfigError(
        "model.layers={} model.hidden={} model.heads={} model.kv_heads={} (all must be positive)",
        config.layers, config.hidden, config.heads, config.kv_heads);
  }
  if (config.resolved_head_dim() % 2 != 0) {
    throw base::ConfigError("model.head_dim is {} (rotary positions need an even number) choose an even one",
                            config.resolved_head_dim());
  }
}

std::shared_ptr<parallel::Parameter> add_head(const TransformerConfig& config,
                                              parallel::ParameterMap& parameters,
                                              const parallel::ProcessGrid& grid) {
  const auto& tp = grid.comm(parallel::Axis::tensor);
  const parallel::Block rows = parallel::block_of(config.vocab_size, tp.size(), tp.rank());
  parallel::ParameterOptions options;
  options.name = "head.weight";
  options.shard = parallel::ShardSpec::slice({config.vocab_size, config.hidden}, 0, rows.first, rows.count);
  options.init.std = config.init_std;
  return parameters.add(options);
}

}  // namespace

Transformer::Transformer(const TransformerConfig& config, parallel::ParameterMap& parameters,
                         const parallel::ProcessGrid& grid)
    : Transformer(config, resolve_layers(config), Range{}, parameters, grid) {}

Transformer::Transformer(const TransformerConfig& config, std::vector<LayerSpec> layers, const Range& range,
                         parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid)
    : parts_(std::make_unique<Parts>()) {
  check_shape(config);
  parts_->config = config;
  parts_->range = range;
  if (parts_->range.last < 0) {
    parts_->range.last = static_cast<std::int64_t>(layers.size());
  }
  parts_->grid = &grid;
  parts_->compute = parameters.options().dtype;
  for (const LayerSpec& layer : layers) {
    parts_->num_sets = std::max(parts_->num_sets, layer.parameter_set + 1);
  }
  if (range.embedding || (range.head && config.tie_embeddings)) {
    parts_->embedding.emplace(config.vocab_size, config.hidden, config.init_std, "embedding.weight",
                              parameters, grid);
  }
  for (std::int64_t i = parts_->range.first; i < parts_->range.last; ++i) {
    const LayerSpec& layer = layers[static_cast<std::size_t>(i)];
    const std::string prefix = fmt::format("layers.{}.", layer.parameter_set);
    parts_->blocks.emplace_back(config, layer, prefix, parameters, grid);
    if (layer.ffn == FfnKind::sparse) {
      parts_->sparse_sets.push_back(layer.parameter_set);
    }
  }
  if (range.head) {
    parallel::ParameterOptions norm;
    norm.name = "final_norm.weight";
    norm.shard = parallel::ShardSpec::whole({config.hidden});
    norm.decay = parallel::DecayGroup::no_decay;
    norm.init = {parallel::InitialValue::Kind::constant, 0.0, 1.0};
    parts_->final_norm = parameters.add(norm);
    parts_->head = config.tie_embeddings ? parts_->embedding->weight() : add_head(config, parameters, grid);
  }
  parts_->layers = std::move(layers);
}

Transformer::~Transformer() = default;

const TransformerConfig& Transformer::config() const {
  return parts_->config;
}

std::int64_t Transformer::num_sparse_layers() const {
  return static_cast<std::int64_t>(parts_->sparse_sets.size());
}

std::int64_t Transformer::num_parameter_sets() const {
  return parts_->num_sets;
}

const std::vector<std::int64_t>& Transformer::sparse_parameter_sets() const {
  return parts_->sparse_sets;
}

at::Tensor Transformer::embed(const nn::TokenBatch& batch, const ForwardContext& context) const {
  ATHANOR_CHECK(parts_->embedding.has_value(), "this range of the model has no embedding");
  const base::ScopedSpan span(base::SpanKind::compute, "embedding");
  at::Tensor x_BsD = parts_->embedding->forward(batch.tokens_BS);
  if (context.training && parts_->config.dropout > 0.0) {
    const auto& tp = parts_->grid->comm(parallel::Axis::tensor);
    nn::DropoutOptions options{parts_->config.dropout, context.seed, "embedding"};
    x_BsD = nn::dropout(x_BsD, batch.sample_ids_B, tp.rank() * x_BsD.size(1), options);
  }
  return x_BsD;
}

namespace {

// Constants f^_i of a layer's balance gradient from the previous global batch; undefined before the first
// one.
at::Tensor balance_frequency(const moe::BalanceState* state, std::int64_t layer, at::ScalarType type) {
  if (state == nullptr || state->previous_tokens == 0) {
    return {};
  }
  return state->previous_counts_LE[layer]
      .to(at::kDouble)
      .div_(static_cast<double>(state->previous_tokens))
      .to(type);
}

moe::MoeContext moe_context(const Transformer& model, const ForwardContext& context,
                            const nn::TokenBatch& batch, std::int64_t sparse_layer,
                            at::ScalarType accumulation) {
  moe::MoeContext moe;
  const auto index = static_cast<std::size_t>(sparse_layer);
  moe.batch = &batch;
  moe.want_aux = context.training;
  moe.balance_frequency_E = balance_frequency(context.balance, sparse_layer, accumulation);
  if (context.balance != nullptr && model.config().moe.uses(moe::BalanceKind::bias)) {
    moe.bias_E = context.balance->bias_PE[model.sparse_parameter_sets()[index]];
  }
  moe.valid_labels = context.valid_labels;
  moe.routed_tokens = context.routed_tokens;
  moe.num_sequences = context.num_sequences;
  moe.statistics = context.statistics != nullptr ? &(*context.statistics)[index] : nullptr;
  moe.forced_ids_TK = context.forced_ids != nullptr ? &(*context.forced_ids)[index] : nullptr;
  return moe;
}

void check_layers(const std::vector<std::int64_t>& asked, std::size_t layers) {
  for (const std::int64_t layer : asked) {
    if (layer < 0 || layer >= static_cast<std::int64_t>(layers)) {
      throw base::ConfigError(
          "layer {} was asked for (the model has layers 0 to {}) choose one of the model's layers", layer,
          layers - 1);
    }
  }
}

void start_capture(LayerCapture& capture, std::size_t layers) {
  check_layers(capture.hidden_layers, layers);
  check_layers(capture.attention_layers, layers);
  capture.hidden_BsD.assign(capture.hidden_layers.size(), at::Tensor());
  capture.attention.assign(capture.attention_layers.size(), nn::QueriesKeys{});
}

void capture_layer(LayerCapture& capture, std::int64_t layer, const BlockOutput& out) {
  for (std::size_t i = 0; i < capture.hidden_layers.size(); ++i) {
    if (capture.hidden_layers[i] == layer) {
      capture.hidden_BsD[i] = out.y_BsD;
    }
  }
  for (std::size_t i = 0; i < capture.attention_layers.size(); ++i) {
    if (capture.attention_layers[i] == layer) {
      capture.attention[i] = out.attention;
    }
  }
}

bool wants_attention(const LayerCapture* capture, std::int64_t layer) {
  return capture != nullptr &&
         std::ranges::find(capture->attention_layers, layer) != capture->attention_layers.end();
}

}  // namespace

Transformer::Hidden Transformer::blocks(const at::Tensor& x_BsD, const nn::TokenBatch& batch,
                                        const ForwardContext& context) const {
  const at::ScalarType accumulation = parallel::accumulation_type(parts_->compute);
  // Shared, not a local: repeated passes in backward read the tables after this function has returned.
  const auto tables = std::make_shared<const nn::RotaryTables>(
      nn::rotary_tables(batch.positions_BS, parts_->config.resolved_head_dim(), parts_->config.rope_theta,
                        accumulation, x_BsD.device()));
  if (context.capture != nullptr) {
    start_capture(*context.capture, parts_->layers.size());
  }
  Hidden out{x_BsD, at::Tensor()};
  std::int64_t sparse_layer = 0;
  for (std::size_t i = 0; i < parts_->blocks.size(); ++i) {
    const TransformerBlock& block = parts_->blocks[i];
    const std::int64_t layer = static_cast<std::int64_t>(i) + parts_->range.first;
    const bool sparse = parts_->layers[static_cast<std::size_t>(layer)].ffn == FfnKind::sparse;
    BlockContext block_context;
    block_context.attention = {&batch, tables.get(), context.store, static_cast<std::int64_t>(i)};
    block_context.dropout = context.training ? parts_->config.dropout : 0.0;
    block_context.seed = context.seed;
    block_context.first_position = parts_->grid->rank(parallel::Axis::tensor) * x_BsD.size(1);
    if (sparse) {
      block_context.moe = moe_context(*this, context, batch, sparse_layer++, accumulation);
    }
    block_context.capture_attention = wants_attention(context.capture, layer);
    BlockOutput result;
    if (context.training && parts_->config.recompute) {
      result = recompute_block(out.h_BsD, [&block, block_context, tables](const at::Tensor& x, Pass pass) {
        BlockContext pass_context = block_context;
        if (pass == Pass::repeated) {
          pass_context.moe.statistics = nullptr;
        }
        return block.forward(x, pass_context);
      });
    } else {
      result = block.forward(out.h_BsD, block_context);
    }
    if (context.capture != nullptr) {
      capture_layer(*context.capture, layer, result);
    }
    out.h_BsD = result.y_BsD;
    if (result.aux.defined()) {
      out.aux = out.aux.defined() ? out.aux + result.aux : result.aux;
    }
  }
  if (parts_->final_norm) {
    out.h_BsD = nn::rms_norm(out.h_BsD, nn::read_weight(parts_->final_norm), parts_->config.norm_eps,
                             parts_->config.storage.of(nn::ActivationClass::norm));
  }
  return out;
}

nn::CrossEntropy Transformer::head_loss(const at::Tensor& h_BsD, const nn::TokenBatch& batch,
                                        const nn::CrossEntropyOptions& options) const {
  const base::ScopedSpan span(base::SpanKind::compute, "head");
  const auto& tp = parts_->grid->comm(parallel::Axis::tensor);
  return nn::vocab_parallel_cross_entropy(h_BsD, head_weight(), batch.labels_BS, head_first_id(), tp,
                                          options);
}

nn::Weight Transformer::head_weight() const {
  ATHANOR_CHECK(parts_->head != nullptr, "this range of the model has no head");
  return nn::read_weight(parts_->head);
}

std::int64_t Transformer::head_first_id() const {
  ATHANOR_CHECK(parts_->head != nullptr, "this range of the model has no head");
  return parts_->head->shard.offset[0];
}

at::Tensor Transformer::head_logits(const at::Tensor& h_BsD, std::int64_t position) const {
  ATHANOR_CHECK(parts_->head != nullptr, "this range of the model has no head");
  at::NoGradGuard no_grad;
  const auto& tp = parts_->grid->comm(parallel::Axis::tensor);
  const at::Tensor h_BSD = parallel::autograd::all_gather_dim(h_BsD, 1, tp, parallel::Traffic::other);
  return nn::gather_logits(h_BSD.select(1, position).contiguous(), head_weight().tensor,
                           parts_->config.vocab_size, tp);
}

moe::BalanceState Transformer::make_balance_state() const {
  moe::BalanceState state;
  const std::int64_t experts = parts_->config.moe.num_experts;
  state.previous_counts_LE = at::zeros({num_sparse_layers(), experts}, at::kLong);
  state.bias_PE = at::zeros({num_parameter_sets(), experts}, parallel::accumulation_type(parts_->compute));
  return state;
}

std::vector<moe::LayerStatistics> Transformer::make_statistics() const {
  std::vector<moe::LayerStatistics> statistics;
  for (std::int64_t i = 0; i < num_sparse_layers(); ++i) {
    statistics.push_back(moe::make_statistics(parts_->config.moe.num_experts));
  }
  return statistics;
}

}  // namespace athanor::model
