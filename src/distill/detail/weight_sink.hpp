// Weights with a sink in the context of an autograd function.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include "parallel/parameter_map.hpp"

namespace athanor::distill::detail {

/// Keeps the address of a weight's sink (or null) for the backward pass. Parameters outlive backward passes.
inline void save_sink(torch::autograd::AutogradContext* ctx, parallel::GradAccumulator* sink) {
  ctx->saved_data["sink"] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(sink));
}

/// Hands a weight gradient of any float type to the saved sink, or returns it (undefined otherwise) as what
/// backward returns for the weight.
inline at::Tensor deliver_weight_gradient(torch::autograd::AutogradContext* ctx, const at::Tensor& gradient,
                                          at::ScalarType weight_type) {
  auto* sink = reinterpret_cast<parallel::GradAccumulator*>(
      static_cast<std::intptr_t>(ctx->saved_data["sink"].toInt()));
  if (sink == nullptr) {
    return gradient.to(weight_type);
  }
  sink->add(gradient.view_as(sink->buffer()));
  return at::Tensor();
}

}  // namespace athanor::distill::detail
