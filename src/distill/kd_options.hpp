// Which divergence between teacher and student is minimised, and for which payloads it is defined.
//
// p = softmax(u / T) of the teacher's logits u, q = softmax(z / T) of the student's logits z. All carry T^2,
// in value and gradient, so that their weight against hard labels does not depend on T (Hinton et al. 2015).
#pragma once

#include <string_view>

#include "distill/signal.hpp"
#include "kernels/distillation.hpp"

namespace athanor::distill {

/// What is minimised: forward_kl, reverse_kl, skew_kl, skew_reverse_kl, jsd or logit_mse.
using KdLoss = kernels::Divergence;
/// As the configuration spells it, e.g. "forward_kl".
std::string_view name_of(KdLoss loss);

struct KdOptions {
  KdLoss loss = KdLoss::forward_kl;
  double skew = 0.1;  ///< a of the skewed losses, in [0, 1)
  double beta = 0.5;  ///< b of jsd, in [0, 1]

  /// The same divergence with the ends replaced: skew 0 and beta 0 or 1 are plain KL.
  KdOptions canonical() const;
};

/// Throws ConfigError when a number is out of range, or when `payload` does not determine the loss: `full`
/// and `hidden` serve all of them; `topk` (with its tail) and `sampled` serve the forward KL only, since the
/// others need the teacher's probability of every id that the student may choose.
void validate(const KdOptions& options, PayloadKind payload);

}  // namespace athanor::distill
