// The one hook through which layers read their weights and give their weight gradients back.
#pragma once

#include <memory>

#include <ATen/core/Tensor.h>

#include "parallel/parameter_map.hpp"

namespace athanor::nn {

/// A weight as a layer sees it in one forward pass.
///
/// `tensor` is what the computation uses. When `sink` is set (the identity hook), backward passes add the
/// weight gradient there and return no gradient to autograd; otherwise the gradient flows into `tensor`
/// through autograd (low-rank deltas, fake quantisation).
struct Weight {
  at::Tensor tensor;
  parallel::GradAccumulator* sink = nullptr;
};

/// Reads a parameter for one forward pass, waiting for what still writes it (a gather under way). Identity
/// today. `sink` is set when the parameter is trainable, its
/// accumulator is attached and gradients are enabled; a detached (frozen) tensor otherwise.
Weight read_weight(const std::shared_ptr<parallel::Parameter>& parameter);

}  // namespace athanor::nn
