// Teacher signals of every payload for tests, on any split of the vocabulary.
#pragma once

#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "distill/codec.hpp"
#include "distill/distill_loss.hpp"
#include "parallel/shard_spec.hpp"
#include "support/finite_difference.hpp"

namespace athanor::tests {

/// This rank's columns of whole logits [N, V].
inline at::Tensor columns_of(const at::Tensor& whole_NV, const parallel::Communicator& tp) {
  const parallel::Block block = parallel::block_of(whole_NV.size(1), tp.size(), tp.rank());
  return whole_NV.narrow(1, block.first, block.count).contiguous();
}

inline std::int64_t first_id(std::int64_t vocab, const parallel::Communicator& tp) {
  return parallel::block_of(vocab, tp.size(), tp.rank()).first;
}

inline distill::TokenPlaces places_of(std::int64_t tokens, std::int64_t first_sample = 3) {
  return {at::full({tokens}, first_sample, at::kLong), at::arange(tokens, at::kLong)};
}

/// The signal of whole teacher logits [N, V] as rank `tp` of the student gets it.
inline distill::TeacherSignal signal_of(distill::PayloadKind kind, const at::Tensor& teacher_NV,
                                        const std::vector<double>& temperatures,
                                        const parallel::Communicator& tp, std::int64_t top_k = 4,
                                        std::int64_t samples = 20) {
  const at::Tensor own = columns_of(teacher_NV, tp);
  const std::int64_t first = first_id(teacher_NV.size(1), tp);
  switch (kind) {
    case distill::PayloadKind::full:
      return {temperatures, distill::FullSignal{own}};
    case distill::PayloadKind::hidden:  // states and head whose product is the logits
      return {temperatures,
              distill::HiddenSignal{at::eye(teacher_NV.size(0), teacher_NV.options()), own.t().contiguous()}};
    case distill::PayloadKind::topk:
      return {temperatures, distill::encode_topk(own, first, top_k, temperatures, tp)};
    case distill::PayloadKind::sampled:
      return {temperatures,
              distill::encode_sampled(own, first, samples, temperatures, places_of(own.size(0)), 5, tp)};
    case distill::PayloadKind::none:
      break;
  }
  return {temperatures, distill::NoSignal{}};
}

/// A loss with the payloads that determine it.
struct LossCase {
  std::string name;
  distill::KdOptions kd;
};
inline std::vector<LossCase> all_losses() {
  using distill::KdLoss;
  return {{"forward_kl", {.loss = KdLoss::forward_kl}},
          {"reverse_kl", {.loss = KdLoss::reverse_kl}},
          {"skew_kl", {.loss = KdLoss::skew_kl, .skew = 0.1}},
          {"skew_reverse_kl", {.loss = KdLoss::skew_reverse_kl, .skew = 0.2}},
          {"jsd 0.5", {.loss = KdLoss::jsd, .beta = 0.5}},
          {"jsd 0.1", {.loss = KdLoss::jsd, .beta = 0.1}},
          {"jsd 0.9", {.loss = KdLoss::jsd, .beta = 0.9}},
          {"logit_mse", {.loss = KdLoss::logit_mse}}};
}
inline std::vector<distill::PayloadKind> payloads_of(const distill::KdOptions& kd) {
  using distill::PayloadKind;
  if (kd.loss == distill::KdLoss::forward_kl) {
    return {PayloadKind::full, PayloadKind::hidden, PayloadKind::topk, PayloadKind::sampled};
  }
  return {PayloadKind::full, PayloadKind::hidden};
}

/// Some labels, one of them ignored when there are two or more.
inline at::Tensor some_labels(std::int64_t tokens, std::int64_t vocab) {
  at::Tensor labels = (at::arange(tokens, at::kLong) * 7).remainder(vocab);
  if (tokens > 1) {
    labels[1] = -100;
  }
  return labels;
}

/// Weighted terms of tokens at alternating temperatures; token 2 has no teacher.
inline distill::TokenTerms some_terms(std::int64_t tokens, std::int64_t vocab, std::int64_t temperatures,
                                      at::ScalarType type = at::kDouble) {
  distill::TokenTerms terms;
  terms.labels_N = some_labels(tokens, vocab);
  terms.ce_weight_N = at::linspace(0.2, 0.9, tokens, at::kDouble).to(type);
  terms.kd_weight_N = at::linspace(1.1, 0.4, tokens, at::kDouble).to(type);
  terms.kd_mask_N = at::ones({tokens}, at::kBool);
  if (tokens > 2) {
    terms.kd_mask_N[2] = false;
  }
  terms.temperature_N = at::arange(tokens, at::kLong).remainder(temperatures);
  return terms;
}

/// The weighted sum that the gradient of a chunk belongs to.
inline double weighted_sum(const distill::TokenLosses& losses, const distill::TokenTerms& terms) {
  return (losses.ce_N * terms.ce_weight_N + losses.kd_N * terms.kd_weight_N).sum().item<double>();
}

}  // namespace athanor::tests
