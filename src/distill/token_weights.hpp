// From the numbers of a step to the weights of its tokens.
#pragma once

#include <ATen/core/Tensor.h>

namespace athanor::distill {

/// What the weights of a batch's tokens are made of. N tokens of a micro-batch; A the accumulation type.
struct TokenWeightOptions {
  double ce = 0.0;  ///< (1 - a) * weight of CE
  double kd = 0.0;  ///< a * weight of KD
  /// Global numbers of the batch: valid labels N, and those of them that have a teacher. Objectives are
  /// divided by N once, in the optimizer; the teacher's term is a mean over its own tokens.
  double valid_labels = 1.0;
  double teacher_labels = 1.0;
};

struct TokenWeights {
  at::Tensor ce_N;
  at::Tensor kd_N;
};

/// The weights of tokens with a label (has_label_N, bool) and those that also have a teacher (has_teacher_N,
/// bool). `gate_N` (A, undefined: 1) is the share of the teacher's part that a token keeps. What a token does
/// not give to the teacher - for want of a payload, or gated - goes back to its label, so that a token's CE
/// and KD always sum to the same share: ce + (1 - gate) kd without the factor of the denominators.
TokenWeights token_weights(const at::Tensor& has_label_N, const at::Tensor& has_teacher_N,
                           const at::Tensor& gate_N, at::ScalarType type, const TokenWeightOptions& options);

}  // namespace athanor::distill
