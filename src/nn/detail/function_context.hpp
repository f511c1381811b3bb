// What the hand-written autograd functions of this library share: weights with a sink in a function's
// context.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/grouped_gemm.hpp"
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

/// Adds a [m, k] b [k, n] to the sink's sum, straight from the product.
inline void add_weight_product(parallel::GradAccumulator& sink, const at::Tensor& a, const at::Tensor& b) {
  const auto mode = sink.is_empty() ? kernels::GemmMode::overwrite : kernels::GemmMode::add;
  kernels::matmul_into(a, b, mode, sink.buffer().view({a.size(0), b.size(1)}));
  sink.mark_nonempty();
}

/// x itself when its heads are dense and its tokens evenly spaced (a part of a wider projection is), else a
/// copy.
inline at::Tensor with_dense_heads(const at::Tensor& x_BSHC) {
  const bool dense = x_BSHC.stride(3) == 1 && x_BSHC.stride(2) == x_BSHC.size(3) &&
                     x_BSHC.stride(0) == x_BSHC.size(1) * x_BSHC.stride(1);
  return dense ? x_BSHC : x_BSHC.contiguous();
}

}  // namespace athanor::nn::detail
