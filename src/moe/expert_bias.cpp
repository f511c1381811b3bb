#include "moe/expert_bias.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.hpp"

namespace athanor::moe {

void update_bias(at::Tensor& bias_E, const at::Tensor& counts_E, double gamma) {
  ATHANOR_CHECK(bias_E.dim() == 1 && bias_E.sizes() == counts_E.sizes(), "bias has {} values, counts {}",
                bias_E.numel(), counts_E.numel());
  const at::NoGradGuard no_grad;
  // E * c_i against sum(c) in integers: the sign is exact, a balanced expert does not move.
  const at::Tensor counts = counts_E.to(at::kLong);
  const at::Tensor direction = (counts.sum() - counts * counts.numel()).sign();
  bias_E.add_(direction.to(bias_E.scalar_type()), gamma);
}

}  // namespace athanor::moe
