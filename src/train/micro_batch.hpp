// Forward and backward of one micro-batch.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "model/transformer.hpp"
#include "nn/token_batch.hpp"

namespace athanor::train {

/// A micro-batch between its forward and its backward.
struct MicroBatch {
  nn::TokenBatch batch;
  std::vector<at::Tensor> forced_ids;  ///< tests; empty: routed normally
  at::Tensor ce_sum;                   ///< scalar with graph
  at::Tensor aux;                      ///< scalar with graph; undefined: none
};

/// Runs embedding, blocks and head; fills ce_sum and aux. Returns sum of CE over the replica's valid labels.
/// `context` and `micro` must live until the backward pass. Collective over tp and ep.
double forward_micro_batch(const model::Transformer& model, const model::ForwardContext& context,
                           MicroBatch& micro);

/// Back-propagates seed * (ce_sum + aux) and frees the graph. Collective over tp and ep.
void backward_micro_batch(MicroBatch& micro, double seed);

}  // namespace athanor::train
