// Balancing without a loss: a bias on the scores that only the choice sees.
#pragma once

#include <ATen/core/Tensor.h>

namespace athanor::moe {

/// b_i += gamma * sign(mean(c) - c_i) in place, for one parameter set; counts [E] (int64, of the whole global
/// batch) are summed over the layers that share the set. Not differentiable, not collective. Wang et al.
/// 2024, algorithm 1.
void update_bias(at::Tensor& bias_E, const at::Tensor& counts_E, double gamma);

}  // namespace athanor::moe
