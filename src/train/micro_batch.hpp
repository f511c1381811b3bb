// One micro-batch and its backward.
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
  at::Tensor objective;                ///< scalar with graph; what is minimised besides aux
  at::Tensor aux;                      ///< scalar with graph; undefined: none
};

/// Back-propagates seed * (objective + aux) and frees the graph. Collective over tp and ep.
void backward_micro_batch(MicroBatch& micro, double seed);

}  // namespace athanor::train
