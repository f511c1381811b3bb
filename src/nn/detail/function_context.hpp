// What the hand-written autograd functions of this library share: weights with a sink in a function's
// context.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include "parallel/parameter_map.hpp"

namespace athanor::nn::detail {

/// Keeps the address of a weight's sink (or null) for the backward pass. Parameters outlive backward passes.
inline void save_sink(torch::autograd::AutogradContext* ctx, parallel::GradAccumulator* sink) {
  ctx->saved_data["sink"] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(sink));
}
inline parallel::GradAccumulator* saved_sink(torch::autograd::AutogradContext* ctx) {
  return reinterpret_cast<parallel::GradAccumulator*>(
      static_cast<std::intptr_t>(ctx->saved_data["sink"].toInt()));
}

/// Hands a weight gradient of any float type over: to the sink, or (undefined otherwise) as the value that
/// backward returns for the weight.
inline at::Tensor deliver_weight_gradient(parallel::GradAccumulator* sink, const at::Tensor& gradient,
                                          const at::Tensor& weight) {
  if (sink == nullptr) {
    return gradient.to(weight.scalar_type()).view_as(weight);
  }
  sink->add(gradient.view_as(weight));
  return at::Tensor();
}

}  // namespace athanor::nn::detail
