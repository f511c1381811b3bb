// The decoder-only transformer: a range of layers, embedding and head optional. Knows no roles.
//
// Legend as in nn/token_batch.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/transformer_config.hpp"
#include "moe/statistics.hpp"
#include "nn/attention.hpp"
#include "nn/token_batch.hpp"
#include "nn/vocab_parallel.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::model {

/// States that blocks() hands out besides its result: the tensors in the graph, so that losses of them
/// differentiate through the layers below. Layers are numbered over the whole model, in any order, repeats
/// allowed; result i is that of layer i of the list (undefined where another range of the model has it).
struct LayerCapture {
  std::vector<std::int64_t> hidden_layers;     ///< asked for: the state after these blocks
  std::vector<std::int64_t> attention_layers;  ///< asked for: queries and keys of these layers
  /// [B, s, D], this rank's positions, before the final norm; written by each pass.
  std::vector<at::Tensor> hidden_BsD;
  /// This rank's heads, all positions; written by each pass. Kept in memory where layers are recomputed.
  std::vector<nn::QueriesKeys> attention;
};

/// What one forward pass needs besides the batch.
struct ForwardContext {
  bool training = true;                        ///< dropout, recomputation and auxiliary losses apply
  double valid_labels = 0;                     ///< N of the global batch
  double routed_tokens = 0;                    ///< T of the global batch
  double num_sequences = 0;                    ///< sequences of the global batch
  std::uint64_t seed = 0;                      ///< run.seed, for dropout
  const moe::BalanceState* balance = nullptr;  ///< nullptr: no bias, no balance gradient
  std::vector<moe::LayerStatistics>* statistics = nullptr;  ///< one per sparse layer; nullptr: do not count
  nn::KeyValueStore* store = nullptr;                       ///< generation
  const std::vector<at::Tensor>* forced_ids = nullptr;      ///< tests: topk ids [T,K] per sparse layer
  LayerCapture* capture = nullptr;                          ///< nullptr: none
};

class Transformer {
 public:
  struct Range {
    std::int64_t first = 0;
    std::int64_t last = -1;  ///< -1: all layers
    bool embedding = true;
    bool head = true;
  };
  /// Makes the parameters in `parameters` (the same names on every layout). `grid` must outlive the model.
  /// Throws ConfigError for shapes the layout cannot hold.
  Transformer(const TransformerConfig& config, std::vector<LayerSpec> layers, const Range& range,
              parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);
  /// The whole model of resolve_layers(config).
  Transformer(const TransformerConfig& config, parallel::ParameterMap& parameters,
              const parallel::ProcessGrid& grid);
  ~Transformer();

  const TransformerConfig& config() const;
  std::int64_t num_sparse_layers() const;
  std::int64_t num_parameter_sets() const;
  /// Sparse layer index -> parameter set of its bias.
  const std::vector<std::int64_t>& sparse_parameter_sets() const;

  /// tokens -> x [B, s, D]. Collective over tp.
  at::Tensor embed(const nn::TokenBatch& batch, const ForwardContext& context) const;
  struct Hidden {
    at::Tensor h_BsD;  ///< after the final norm when the range has the head
    at::Tensor aux;    ///< scalar sum of the layers' auxiliary objectives (scaled by N); undefined: none
  };
  /// Layers (and the final norm). Throws ConfigError when context.capture asks for a layer that the model
  /// does not have. Collective over tp and ep.
  Hidden blocks(const at::Tensor& x_BsD, const nn::TokenBatch& batch, const ForwardContext& context) const;
  /// Cross-entropy of the labels. Collective over tp.
  nn::CrossEntropy head_loss(const at::Tensor& h_BsD, const nn::TokenBatch& batch,
                             const nn::CrossEntropyOptions& options = {}) const;
  /// This rank's rows [v, D] of the head (those of the embedding when they are tied) for one forward pass,
  /// and the vocabulary id of the first of them.
  nn::Weight head_weight() const;
  std::int64_t head_first_id() const;
  /// Logits [B, V] of one position per sequence: h rows at `position` of the padded sequence. No gradient.
  /// Collective over tp; equal on all tp ranks.
  at::Tensor head_logits(const at::Tensor& h_BsD, std::int64_t position) const;

  /// Zero-initialised balancing state for this model.
  moe::BalanceState make_balance_state() const;
  std::vector<moe::LayerStatistics> make_statistics() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace athanor::model
