#include "distill/distill_loss.hpp"

#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/detail/chunk_rows.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {
namespace {

at::Tensor narrowed(const at::Tensor& tensor, std::int64_t first, std::int64_t count) {
  return tensor.defined() ? tensor.narrow(0, first, count) : tensor;
}

/// The teacher's logits of the chunk in type A, [C, v]; undefined without a dense payload.
at::Tensor teacher_logits(const TeacherSignal& signal, at::ScalarType type) {
  if (const auto* full = std::get_if<FullSignal>(&signal.payload)) {
    return full->logits_Nv.to(type).contiguous();
  }
  if (const auto* hidden = std::get_if<HiddenSignal>(&signal.payload)) {
    return at::mm(hidden->h_ND, hidden->head_vD.t()).to(type).contiguous();
  }
  return at::Tensor();
}

Divergence one_divergence(const at::Tensor& student_Cv, std::int64_t first_id, const TeacherSignal& signal,
                          double temperature, const KdOptions& kd, const parallel::Communicator& tp) {
  const at::NoGradGuard no_grad;
  at::Tensor gradient = student_Cv.detach().clone(at::MemoryFormat::Contiguous);
  TokenTerms terms;
  terms.labels_N = at::zeros({gradient.size(0)}, at::kLong);
  terms.kd_weight_N = at::ones({gradient.size(0)},
                               gradient.options().dtype(parallel::accumulation_type(gradient.scalar_type())));
  terms.temperature_N =
      at::full({gradient.size(0)}, temperature_index(signal.temperatures, temperature), at::kLong);
  ChunkOptions options;
  options.first_id = first_id;
  const at::Tensor value = distill_chunk(gradient, terms, signal, kd, tp, options).kd_N;
  return {value, gradient};
}

Divergence dense_divergence(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                            const KdOptions& kd, const parallel::Communicator& tp) {
  return one_divergence(student_Cv, 0, {{temperature}, FullSignal{teacher_Cv}}, temperature, kd, tp);
}

}  // namespace

TokenTerms TokenTerms::narrow(std::int64_t first, std::int64_t count) const {
  return {narrowed(labels_N, first, count), narrowed(ce_weight_N, first, count),
          narrowed(kd_weight_N, first, count), narrowed(kd_mask_N, first, count),
          narrowed(temperature_N, first, count)};
}

TokenLosses distill_chunk(at::Tensor& logits_Cv, const TokenTerms& terms, const TeacherSignal& signal,
                          const KdOptions& kd, const parallel::Communicator& tp,
                          const ChunkOptions& options) {
  const at::NoGradGuard no_grad;
  validate(kd, signal.kind());
  const auto rows = detail::ChunkRows::of(logits_Cv, terms, signal, options.first_id);
  const PayloadKind kind = signal.kind();
  if (kind == PayloadKind::topk || kind == PayloadKind::sampled) {
    return detail::sparse_chunk(logits_Cv, rows, signal, tp, options);
  }
  const at::Tensor teacher_Cv = teacher_logits(signal, parallel::accumulation_type(logits_Cv.scalar_type()));
  return detail::dense_chunk(logits_Cv, rows, teacher_Cv, kd, tp, options);
}

Divergence forward_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                      const parallel::Communicator& tp) {
  return dense_divergence(student_Cv, teacher_Cv, temperature, {.loss = KdLoss::forward_kl}, tp);
}

Divergence reverse_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                      const parallel::Communicator& tp) {
  return dense_divergence(student_Cv, teacher_Cv, temperature, {.loss = KdLoss::reverse_kl}, tp);
}

Divergence skew_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                   double skew, const parallel::Communicator& tp) {
  return dense_divergence(student_Cv, teacher_Cv, temperature, {.loss = KdLoss::skew_kl, .skew = skew}, tp);
}

Divergence skew_reverse_kl(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature,
                           double skew, const parallel::Communicator& tp) {
  return dense_divergence(student_Cv, teacher_Cv, temperature,
                          {.loss = KdLoss::skew_reverse_kl, .skew = skew}, tp);
}

Divergence jsd(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, double temperature, double beta,
               const parallel::Communicator& tp) {
  return dense_divergence(student_Cv, teacher_Cv, temperature, {.loss = KdLoss::jsd, .beta = beta}, tp);
}

Divergence logit_mse(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv,
                     const parallel::Communicator& tp) {
  return dense_divergence(student_Cv, teacher_Cv, 1.0, {.loss = KdLoss::logit_mse}, tp);
}

Divergence payload_kl(const at::Tensor& student_Cv, std::int64_t first_id, const TeacherSignal& signal,
                      double temperature, const parallel::Communicator& tp) {
  return one_divergence(student_Cv, first_id, signal, temperature, {}, tp);
}

}  // namespace athanor::distill
