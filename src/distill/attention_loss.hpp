// Losses between the attention maps of chosen layers, from queries and keys; no map of [S, S] exists beyond a
// tile.
//
// Legend: B sequences, S positions, H / G query / key-value heads of this tensor-parallel rank (student and
// teacher may have other numbers), C head width. Row i of a head is A_i = softmax over the positions j <= i
// of the same document of q_i.k_j / sqrt(C).
//
//   kl   sum over rows of weight_i * KL(A^T_i || A^S_i)
//   mse  sum over rows of weight_i * sum_j (A^S_ij - A^T_ij)^2
//
// averaged over heads: equal numbers of heads are compared one by one; otherwise the mean map over the
// teacher's heads with the mean map over the student's. Sums; the caller's weights carry what is divided by
// outside: N / (rows of the term) for kl, N / attention_pairs() of the global batch for mse.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "parallel/communicator.hpp"

namespace athanor::distill {

enum class AttentionLossKind { kl, mse };

struct AttentionLossOptions {
  AttentionLossKind kind = AttentionLossKind::kl;
  std::int64_t student_heads = 0;  ///< of the whole model
  std::int64_t teacher_heads = 0;  ///< of the whole model
  std::int64_t tile_rows = 64;     ///< rows of a sequence whose maps [heads, tile, S] exist at one time
};

/// Queries and keys as attention uses them (after norm and rotation), of this rank's heads.
struct QueriesKeys {
  at::Tensor q_BSHC;
  at::Tensor k_BSGC;
};

struct AttentionLoss {
  /// Scalar A, differentiable by the student's queries and keys: this rank's share of the sum. Seed it
  /// equally on all tp ranks; every rank gets the gradient of its heads.
  at::Tensor objective;
  /// Scalar A, the sum over tp of the shares; not differentiable, the same on all tp ranks.
  at::Tensor sum;
};

/// `weight_BS` (accumulation type) is the weight of each row, 0 for rows that do not count (padding).
/// `documents_BS` int64 document ids, undefined: attention crosses. With equal numbers of heads this rank's
/// teacher heads are those of its student heads; otherwise any split of the teacher's heads over tp will do.
/// Collective over tp.
AttentionLoss attention_map_loss(const QueriesKeys& student, const QueriesKeys& teacher,
                                 const at::Tensor& weight_BS, const at::Tensor& documents_BS,
                                 const parallel::Communicator& tp, const AttentionLossOptions& options);

/// Number of (row, column) pairs of the rows with a weight: what the mse of a batch is divided by.
std::int64_t attention_pairs(const at::Tensor& weight_BS, const at::Tensor& documents_BS);

}  // namespace athanor::distill
