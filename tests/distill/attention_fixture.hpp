// Queries and keys of a whole layer and what of it a rank holds, and attention losses written out with whole
// maps.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "distill/attention_loss.hpp"
#include "parallel/shard_spec.hpp"
#include "support/finite_difference.hpp"

namespace athanor::tests {

struct AttentionCase {
  std::int64_t student_heads = 4, student_groups = 2, student_width = 3;
  std::int64_t teacher_heads = 4, teacher_groups = 4, teacher_width = 5;
  std::int64_t batch = 2, seq = 7;
  distill::AttentionLossKind kind = distill::AttentionLossKind::kl;

  distill::QueriesKeys student(std::uint64_t seed = 1) const {
    return {random_tensor({batch, seq, student_heads, student_width}, seed),
            random_tensor({batch, seq, student_groups, student_width}, seed + 1)};
  }
  distill::QueriesKeys teacher(std::uint64_t seed = 5) const {
    return {random_tensor({batch, seq, teacher_heads, teacher_width}, seed),
            random_tensor({batch, seq, teacher_groups, teacher_width}, seed + 1)};
  }
  distill::AttentionLossOptions options(std::int64_t tile) const {
    return {kind, student_heads, teacher_heads, tile};
  }
  /// Row weights; the last position of sequence 0 is padding.
  at::Tensor weights() const {
    at::Tensor weight = random_tensor({batch, seq}, 9).abs() + 0.1;
    weight[0][seq - 1] = 0.0;
    return weight;
  }
  /// Two documents in each sequence.
  at::Tensor documents() const {
    return at::arange(seq, at::kLong).ge(3).to(at::kLong).expand({batch, seq}).contiguous();
  }
};

/// Maps [B, H, S, S].
inline at::Tensor whole_maps(const distill::QueriesKeys& layer, const at::Tensor& documents) {
  const std::int64_t repeat = layer.q_BSHC.size(2) / layer.k_BSGC.size(2), seq = layer.q_BSHC.size(1);
  const at::Tensor q = layer.q_BSHC.transpose(1, 2),
                   k = layer.k_BSGC.transpose(1, 2).repeat_interleave(repeat, 1);
  at::Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
  at::Tensor hidden = at::ones({seq, seq}, at::kBool).triu(1).unsqueeze(0).expand({q.size(0), seq, seq});
  if (documents.defined()) {
    hidden = hidden.logical_or(documents.unsqueeze(2).ne(documents.unsqueeze(1)));
  }
  return at::softmax(scores.masked_fill(hidden.unsqueeze(1), -std::numeric_limits<double>::infinity()), 3);
}

/// The sum that attention_map_loss() returns over all ranks, differentiable.
inline at::Tensor plain_attention_loss(const AttentionCase& which, const distill::QueriesKeys& student,
                                       const distill::QueriesKeys& teacher, const at::Tensor& weight,
                                       const at::Tensor& documents) {
  at::Tensor s = whole_maps(student, documents), t = whole_maps(teacher, documents);
  if (which.student_heads != which.teacher_heads) {
    s = s.mean(1, true);
    t = t.mean(1, true);
  }
  const at::Tensor seen = t.gt(0);
  const at::Tensor terms =
      which.kind == distill::AttentionLossKind::mse
          ? (s - t).square()
          : at::where(seen, t * (at::where(seen, t, 1.0).log() - at::where(seen, s, 1.0).log()), 0.0);
  return (terms.sum(3).mean(1) * weight).sum();
}

}  // namespace athanor::tests
