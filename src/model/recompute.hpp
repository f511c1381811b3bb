// Activation recomputation: keep a block's input, run the block again in backward (Chen et al. 2016).
#pragma once

#include <functional>

#include <ATen/core/Tensor.h>

#include "nn/attention.hpp"

namespace athanor::model {

/// What a recomputable block returns; aux may be undefined, and so may queries and keys (both or neither).
struct BlockOutput {
  at::Tensor y_BsD;
  at::Tensor aux{};
  nn::QueriesKeys attention{};
};

/// Whether a pass of the block is the one that counts (statistics) or its repetition in backward.
enum class Pass { first, repeated };

using RecomputableBlock = std::function<BlockOutput(const at::Tensor& x_BsD, Pass pass)>;

/// block(x, Pass::first) without keeping its activations; backward runs block(x, Pass::repeated) and
/// differentiates that, by all outputs. The block issues the same collectives both times. Everything it
/// refers to must live until backward.
BlockOutput recompute_block(const at::Tensor& x_BsD, const RecomputableBlock& block);

}  // namespace athanor::model
