// Embedding and output head with the vocabulary sharded over tensor-parallel ranks, and the cross-entropy
// over it.
//
// Legend: B, S, s, D, V as in token_batch.hpp; v rows of the vocabulary on this rank (block_of(V, tp,
// tp_rank), may be fewer on the last ranks); N = tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "nn/token_batch.hpp"
#include "nn/weight.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::nn {

/// tokens [B, S] -> [B, s, D]: each rank looks up its rows, then reduce-scatter over the sequence.
/// Parameter: weight [V, D], sharded on V. Collective over tp.
class VocabParallelEmbedding {
 public:
  VocabParallelEmbedding(std::int64_t vocab, std::int64_t hidden, double init_std, const std::string& name,
                         parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);
  at::Tensor forward(const at::Tensor& tokens_BS) const;
  const std::shared_ptr<parallel::Parameter>& weight() const { return weight_; }

 private:
  const parallel::Communicator* tp_ = nullptr;
  std::shared_ptr<parallel::Parameter> weight_;
};

/// Result of the cross-entropy of one micro-batch.
struct CrossEntropy {
  /// Scalar, accumulation type, differentiable: the sum of CE over this replica's valid labels. The same
  /// number on all tp ranks; backward through it on every tp rank gives each its shard's gradient (seed it
  /// equally on all of them).
  at::Tensor sum;
  /// [N] CE of each token (0 where ignored), accumulation type, not differentiable; the same on all tp ranks.
  at::Tensor per_token;
};

/// Sees this rank's slice of the logits of one chunk, [rows, v] of h's type (contiguous, valid during the
/// call only), before they are used up. Row i is token first_token + i of the B*S gathered ones, in row-major
/// order of [B, S] (labelled or not). May write to the logits if it restores them before it returns.
using LogitsObserver = std::function<void(at::Tensor& logits_Cv, std::int64_t first_token)>;

struct CrossEntropyOptions {
  std::int64_t chunk_tokens = 512;  ///< rows of logits that exist at one time
  /// Called once for each chunk, in the order of tokens, on every tp rank for the same chunks (it may be
  /// collective over tp), with gradients disabled; also in passes without gradients. Called during
  /// vocab_parallel_cross_entropy, not kept. Empty: nobody looks.
  LogitsObserver observe_logits = nullptr;
};

/// Sum of -log softmax(h W^T)[label] with the vocabulary of W sharded over tp, in chunks of rows: logits
/// [chunk, v] are never kept; dlogits, the gradient of h and that of W are computed in the forward pass while
/// they are there (the objective is linear in this sum) and scaled by the seed in backward. h [B, s, D] is
/// gathered over tp; its gradient is reduce-scattered. Statistics in the accumulation type. Collective over
/// tp.
CrossEntropy vocab_parallel_cross_entropy(const at::Tensor& h_BsD, const Weight& weight_vD,
                                          const at::Tensor& labels_BS, std::int64_t vocab_first,
                                          const parallel::Communicator& tp,
                                          const CrossEntropyOptions& options);

/// Full logits [N, V] of rows h_ND (the same on all tp ranks) on every tp rank, no gradient. For generation.
at::Tensor gather_logits(const at::Tensor& h_ND, const at::Tensor& weight_vD, std::int64_t vocab,
                         const parallel::Communicator& tp);

}  // namespace athanor::nn
