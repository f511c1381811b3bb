// What the router is told and what it decides.
//
// Legend: B sequences of the micro-batch, T routed tokens of this rank (its real positions of all B
// sequences, in (sequence, position) order), D hidden width, E experts, K choices of a token.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "moe/statistics.hpp"
#include "nn/token_batch.hpp"

namespace athanor::moe {

/// What a forward pass of a sparse layer needs besides x.
struct MoeContext {
  const nn::TokenBatch* batch = nullptr;
  /// Constants f^_i of the gradient (see design section 4): [E] in the accumulation type; undefined before
  /// the first step (no balance gradient). Ignored for BalanceCounts::micro_step.
  at::Tensor balance_frequency_E;
  at::Tensor bias_E;                      ///< undefined: none
  double valid_labels = 0;                ///< N of the global batch (the aux terms are scaled by it)
  double routed_tokens = 0;               ///< T of the global batch
  double num_sequences = 0;               ///< sequences of the global batch
  LayerStatistics* statistics = nullptr;  ///< nullptr: do not count (recomputation)
  bool want_aux = true;                   ///< false in evaluation
  const at::Tensor* forced_ids_TK =
      nullptr;  ///< tests: routing is forced to these ids (gates still from scores)
};

/// What the router decided for this rank's tokens. Gates and aux are differentiable.
struct Routing {
  at::Tensor topk_ids_TK;  ///< int64 expert ids, best first
  at::Tensor gates_TK;     ///< accumulation type; 0 for dropped choices
  at::Tensor kept_TK;      ///< bool; undefined when nothing can be dropped
  at::Tensor aux;  ///< scalar: this rank's share of N * (balance + z) objective; undefined when there is none
};

}  // namespace athanor::moe
