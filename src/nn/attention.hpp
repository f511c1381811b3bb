// Grouped-query causal attention with rotary positions, optional query/key norm, tensor and sequence
// parallel.
//
// Legend as in token_batch.hpp; H query heads, G key/value heads, C head width (logical numbers; shards are
// H/tp ...).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "nn/functional.hpp"
#include "nn/token_batch.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::nn {

/// What a query may attend to, as a description (not an [S,S] mask).
struct AttentionMask {
  bool causal = true;
  /// int64 document ids of queries and of keys; a query attends to keys of its own document only. Undefined:
  /// all.
  at::Tensor query_documents_BS;
  at::Tensor key_documents_BL;
};

/// softmax(q k^T / sqrt(C)) v under a mask; key/value heads are repeated over their query heads. With fewer
/// queries than keys (cache) query i stands at key position L - S + i. Returns [B, S, H, C]. Differentiable.
/// Keeps q, k, v and the result for backward as `keep` says; `kept_y` receives the result as it is kept, for
/// others that need it (nullptr: nobody does).
at::Tensor attention_core(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC, const at::Tensor& v_BLGC,
                          const AttentionMask& mask, const Keep& keep = {},
                          StoredActivation* kept_y = nullptr);

/// Where the keys and values of earlier positions are kept during generation; blocks per sequence are behind
/// it.
class KeyValueStore {
 public:
  virtual ~KeyValueStore() = default;
  /// Appends `real_count` new positions of layer `layer` ([B, real_count, G_local, C]) and returns all of
  /// them so far as keys and values [B, L, G_local, C] (equal L for all sequences of the batch).
  struct KeysValues {
    at::Tensor k_BLGC;
    at::Tensor v_BLGC;
  };
  virtual KeysValues append(std::int64_t layer, const at::Tensor& k_BSGC, const at::Tensor& v_BSGC) = 0;
};

struct AttentionOptions {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  bool qk_norm = true;
  double norm_eps = 1e-6;
  double init_std = 0.02;         ///< of q and kv
  double output_init_std = 0.02;  ///< of o (scaled by depth by the caller)
  Keep keep{};                    ///< how what backward reads is kept
};

/// Queries and keys as the core uses them (after norm and rotation), of this rank's heads, all positions.
struct QueriesKeys {
  at::Tensor q_BSHC;
  at::Tensor k_BSGC;
};

/// What one forward pass of attention needs besides x.
struct AttentionContext {
  const TokenBatch* batch = nullptr;
  const RotaryTables* rotary = nullptr;  ///< [B, S, C/2] for the whole (padded) sequence
  KeyValueStore* store = nullptr;        ///< nullptr: training and scoring
  std::int64_t layer = 0;                ///< index for `store`
  QueriesKeys* capture = nullptr;  ///< receives the tensors of this pass (in the graph); nullptr: nobody
};

/// x [B, s, D] (this rank's positions) -> [B, s, D]. Gathers the sequence over tp, computes its heads, and
/// reduce-scatters over tp. Collective over the tp group, in forward and backward.
/// Parameters: q.weight [H*C, D] and o.weight [D, H*C] sharded by query heads; kv.weight [2, G*C, D] by
/// key/value heads (when tp > G, a head is held by tp/G ranks: G must divide tp); q_norm.weight,
/// k_norm.weight [C] whole.
class CausalAttention {
 public:
  /// Throws ConfigError when tp does not divide heads, or neither of kv_heads and tp divides the other.
  CausalAttention(const AttentionOptions& options, const std::string& prefix,
                  parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);
  at::Tensor forward(const at::Tensor& x_BsD, const AttentionContext& context) const;

 private:
  AttentionOptions options_;
  const parallel::Communicator* tp_ = nullptr;
  std::shared_ptr<parallel::Parameter> q_, kv_, o_, q_norm_, k_norm_;
};

}  // namespace athanor::nn
