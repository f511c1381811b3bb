#include "distill/detail/chunk_rows.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/detail/dense_kernels.hpp"
#include "nn/token_batch.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill::detail {
namespace {

at::Tensor weights_or_zero(const at::Tensor& weight, const at::Tensor& applies,
                           const at::TensorOptions& options) {
  if (!weight.defined()) {
    return at::zeros(applies.sizes(), options);
  }
  ATHANOR_CHECK(weight.sizes() == applies.sizes(), "{} weights for {} tokens", weight.numel(),
                applies.numel());
  return at::where(applies, weight.to(options.dtype()), at::zeros({}, options)).contiguous();
}

}  // namespace

ChunkRows ChunkRows::of(const at::Tensor& logits_Cv, const TokenTerms& terms, const TeacherSignal& signal,
                        std::int64_t first_id) {
  const std::int64_t rows = logits_Cv.size(0);
  const bool has_signal = signal.kind() != PayloadKind::none;
  ATHANOR_CHECK(logits_Cv.dim() == 2 && logits_Cv.is_contiguous(), "logits must be a contiguous [C, v]");
  ATHANOR_CHECK(terms.labels_N.numel() == rows, "{} labels for {} rows", terms.labels_N.numel(), rows);
  ATHANOR_CHECK(!has_signal || signal.num_tokens() == rows, "a signal of {} tokens for {} rows",
                signal.num_tokens(), rows);
  const at::TensorOptions numbers =
      logits_Cv.options().dtype(parallel::accumulation_type(logits_Cv.scalar_type())).requires_grad(false);
  const at::Tensor has_label = terms.labels_N.ne(nn::ignored_label);
  at::Tensor has_teacher = has_signal ? has_label : at::zeros_like(has_label);
  if (has_signal && terms.kd_mask_N.defined()) {
    has_teacher = has_label.logical_and(terms.kd_mask_N);
  }
  ChunkRows result;
  result.labels_C = at::where(has_label, terms.labels_N - first_id, -1).contiguous();
  result.flags_C = (has_label.to(at::kByte) * row_has_label + has_teacher.to(at::kByte) * row_has_teacher)
                       .to(at::kByte)
                       .contiguous();
  result.ce_weight_C = weights_or_zero(terms.ce_weight_N, has_label, numbers);
  result.kd_weight_C = weights_or_zero(terms.kd_weight_N, has_teacher, numbers);
  result.temperature_index_C =
      terms.temperature_N.defined() ? terms.temperature_N.contiguous() : at::zeros({rows}, at::kLong);
  result.temperature_C = at::ones({rows}, at::kDouble);
  double* temperature = result.temperature_C.data_ptr<double>();
  const std::uint8_t* flags = result.flags_C.const_data_ptr<std::uint8_t>();
  for (std::int64_t r = 0; r < rows; ++r) {
    if ((flags[r] & row_has_teacher) != 0) {
      const std::int64_t index = result.temperature_index_C.const_data_ptr<std::int64_t>()[r];
      ATHANOR_CHECK(index >= 0 && index < static_cast<std::int64_t>(signal.temperatures.size()),
                    "temperature {} of {}", index, signal.temperatures.size());
      temperature[r] = signal.temperatures[static_cast<std::size_t>(index)];
    }
  }
  result.inverse_t_C = result.temperature_C.reciprocal().to(numbers.dtype());
  return result;
}

at::Tensor empty_statistics(const at::Tensor& like, std::int64_t rows, std::size_t numbers) {
  return at::empty({rows, static_cast<std::int64_t>(numbers)}, like.options());
}

at::Tensor gather_statistics(const at::Tensor& statistics, const parallel::Communicator& tp) {
  return parallel::all_gather(statistics.unsqueeze(0), tp, parallel::Traffic::other);
}

}  // namespace athanor::distill::detail
