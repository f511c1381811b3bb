// The student's loss over the vocabulary: hard labels and the teacher's signal in one pass over the logits.
//
// Legend: B, S, s, D as in nn/token_batch.hpp; N = B * S tokens; C rows of one chunk; v vocabulary entries of
// this tensor-parallel rank; V whole vocabulary. A is the accumulation type (f64 for f64, else f32).
//
// Nothing here divides by a number of tokens: objectives are sums over this replica's tokens, and the one 1/N
// (global valid labels) is applied in the optimizer. A term whose tokens are fewer carries N / N_term in its
// weights (token_weights.hpp).
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "distill/kd_options.hpp"
#include "distill/signal.hpp"
#include "nn/weight.hpp"
#include "parallel/communicator.hpp"

namespace athanor::distill {

/// What the N tokens take part in.
struct TokenTerms {
  at::Tensor labels_N;       ///< int64 ids; nn::ignored_label: neither loss applies to the token
  at::Tensor ce_weight_N;    ///< A; factor of CE in the objective, 1 - a. Undefined: 0
  at::Tensor kd_weight_N;    ///< A; factor of the divergence in the objective, a. Undefined: 0
  at::Tensor kd_mask_N;      ///< bool; tokens whose divergence is computed. Undefined: those with a label
  at::Tensor temperature_N;  ///< int64 index into TeacherSignal::temperatures. Undefined: 0

  TokenTerms narrow(std::int64_t first, std::int64_t count) const;
};

/// Per token, A, 0 where a term does not apply; the same on all tp ranks.
struct TokenLosses {
  at::Tensor ce_N;  ///< cross-entropy of the label, unweighted
  at::Tensor kd_N;  ///< the divergence with its T^2, unweighted
};

struct ChunkOptions {
  std::int64_t first_id = 0;    ///< vocabulary id of the slice's first entry
  bool wants_gradient = true;   ///< false: logits are left as they are
  double gradient_scale = 1.0;  ///< factor of the gradient that is written (a power of two)
};

/// Losses of one chunk of student logits [C, v] (contiguous, any float type), which become, in place,
/// gradient_scale *
/// ((ce weight) d CE + (kd weight) d KD) of this slice. `signal` and `terms` are those of the chunk's tokens.
/// Needs one all-gather of seven numbers a token (skewed losses and jsd: two more), none in the backward.
/// Collective over tp.
TokenLosses distill_chunk(at::Tensor& logits_Cv, const TokenTerms& terms, const TeacherSignal& signal,
                          const KdOptions& kd, const parallel::Communicator& tp, const ChunkOptions& options);

struct DistillOptions {
  KdOptions kd;
  std::int64_t chunk_tokens = 512;  ///< rows of logits that exist at one time
};

struct HeadLoss {
  /// Scalar A, differentiable: sum over this replica's tokens of the weighted losses. The same number on all
  /// tp ranks; backward through it on every tp rank gives each its shard's gradient (seed it equally on all
  /// of them).
  at::Tensor objective;
  TokenLosses tokens;  ///< not differentiable
};

/// The loss of student states h [B, s, D] through the head weight [v, D], whose vocabulary is sharded over tp
/// from `first_id` on, in chunks of rows: logits [chunk, v] of student and teacher are never kept; the
/// gradients of h and of the weight are computed while they are there and scaled by the seed in backward
/// (once). h is gathered over tp; its gradient is reduce-scattered. Throws ConfigError when the payload does
/// not determine the loss. Collective over tp.
HeadLoss distill_head_loss(const at::Tensor& h_BsD, const nn::Weight& weight_vD, std::int64_t first_id,
                           const TokenTerms& terms, const TeacherSignal& signal,
                           const parallel::Communicator& tp, const DistillOptions& options);

// One divergence on its own: value per token [C] with its T^2, and the gradient of their sum by the student's
// logits, of which this rank holds [C, v]. Padded columns are -infinity on both sides. Collective over tp.
struct Divergence {
  at::Tensor value_C;
  at::Tensor gradient_Cv;
};
Divergence forward_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                      const parallel::Communicator& tp);
Divergence reverse_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                      const parallel::Communicator& tp);
Divergence skew_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                   double skew, const parallel::Communicator& tp);
Divergence skew_reverse_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                           double skew, const parallel::Communicator& tp);
Divergence jsd(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature, double beta,
               const parallel::Communicator& tp);
Divergence logit_mse(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv,
                     const parallel::Communicator& tp);
/// The forward KL of any payload that determines it, at one of its temperatures.
Divergence payload_kl(const at::Tensor& student_Cv, std::int64_t first_id, const TeacherSignal& signal,
                      double temperature, const parallel::Communicator& tp);

}  // namespace athanor::distill
