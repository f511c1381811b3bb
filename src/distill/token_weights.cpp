#include "distill/token_weights.hpp"

#include <ATen/ATen.h>

namespace athanor::distill {

TokenWeights token_weights(const at::Tensor& has_label_N, const at::Tensor& has_teacher_N,
                           const at::Tensor& gate_N, at::ScalarType type, const TokenWeightOptions& options) {
  const at::Tensor label = has_label_N.to(type);
  at::Tensor share = has_label_N.logical_and(has_teacher_N).to(type);
  if (gate_N.defined()) {
    share = share * at::where(share.gt(0), gate_N.to(type), at::zeros_like(share));
  }
  // Every valid label of the batch has a teacher: the factor is exactly 1.
  const double denominators =
      options.teacher_labels > 0.0 ? options.valid_labels / options.teacher_labels : 1.0;
  return {label * options.ce + (label - share) * options.kd, share * (options.kd * denominators)};
}

}  // namespace athanor::distill
