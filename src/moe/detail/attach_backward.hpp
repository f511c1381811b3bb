// A hand-written backward pass for outputs that were computed outside autograd.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

namespace athanor::moe::detail {

using TensorVector = std::vector<at::Tensor>;
/// Gradients of the outputs (undefined where an output was not used) -> gradients of the inputs (undefined:
/// none).
using Backward = std::function<TensorVector(const TensorVector&)>;

/// True when a gradient of one of `inputs` is wanted, so that state for backward is worth keeping.
bool wants_gradient(const TensorVector& inputs);

/// `outputs` as functions of `inputs` whose gradient is `backward`. Returns them unchanged when no gradient
/// is wanted. Everything `backward` holds is freed as soon as it has run, not when the graph goes: it can run
/// once. `span`, a string literal, is what the backward is called in traces.
TensorVector attach_backward(std::string_view span, const TensorVector& inputs, const TensorVector& outputs,
                             Backward backward);

}  // namespace athanor::moe::detail
