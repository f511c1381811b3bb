#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "base/error.hpp"
#include "distill/detail/chunk_rows.hpp"
#include "distill/detail/dense_kernels.hpp"

namespace athanor::distill::detail {
namespace {

bool needs_divergence_sums(KdLoss loss) {
  return loss == KdLoss::skew_kl || loss == KdLoss::skew_reverse_kl || loss == KdLoss::jsd;
}

/// One chunk for element type T of the student's logits.
template <typename T>
struct DenseChunk {
  using A = accumulation_t<T>;
  at::Tensor& logits_Cv;
  const ChunkRows& rows;
  const at::Tensor& teacher_Cv;  ///< A; undefined: no row has a teacher
  const KdOptions kd;
  const parallel::Communicator& tp;
  const ChunkOptions& options;
  TokenLosses losses{};
  std::vector<DenseRow<A>> merged{};

  std::int64_t num_rows() const { return logits_Cv.size(0); }
  const std::uint8_t* flags() const { return rows.flags_C.const_data_ptr<std::uint8_t>(); }
  const std::int64_t* labels() const { return rows.labels_C.const_data_ptr<std::int64_t>(); }
  const A* teacher() const { return teacher_Cv.defined() ? teacher_Cv.const_data_ptr<A>() : nullptr; }
  A parameter() const { return static_cast<A>(kd.loss == KdLoss::jsd ? kd.beta : kd.skew); }

  void merge_statistics();
  void merge_row(const Gathered<DenseStatistics<A>, A>& all, std::int64_t r);
  void add_divergence_sums();
  TokenLosses run();
};

template <typename T>
void DenseChunk<T>::merge_row(const Gathered<DenseStatistics<A>, A>& all, std::int64_t r) {
  using S = DenseStatistics<A>;
  DenseRow<A>& row = merged[static_cast<std::size_t>(r)];
  row.inverse_t = rows.inverse_t_C.const_data_ptr<A>()[r];
  const ExpSum<A> student_1 = merge(all, r, &S::student_max, &S::student_sum_1, A(1));
  row.student_max = student_1.max;
  row.inverse_sum_1 = A(1) / student_1.sum;
  row.ce = rows.ce_weight_C.const_data_ptr<A>()[r] * static_cast<A>(options.gradient_scale);
  if ((flags()[r] & row_has_label) != 0) {
    losses.ce_N.data_ptr<A>()[r] = student_1.log_sum(A(1)) - add_up(all, r, &S::target);
  }
  if ((flags()[r] & row_has_teacher) == 0) {
    return;
  }
  const double temperature = rows.temperature_C.const_data_ptr<double>()[r];
  const A weight = rows.kd_weight_C.const_data_ptr<A>()[r] * static_cast<A>(options.gradient_scale);
  A& value = losses.kd_N.data_ptr<A>()[r];
  if (kd.loss == KdLoss::logit_mse) {
    const A columns = add_up(all, r, &S::teacher_sum);
    value = add_up(all, r, &S::cross) / columns;
    row.kd = weight * A(2) / columns;
    return;
  }
  const ExpSum<A> student = merge(all, r, &S::student_max, &S::student_sum, row.inverse_t);
  const ExpSum<A> teacher = merge(all, r, &S::teacher_max, &S::teacher_sum, row.inverse_t);
  row.inverse_sum = A(1) / student.sum;
  row.teacher_max = teacher.max;
  row.inverse_teacher_sum = A(1) / teacher.sum;
  row.lse_difference =
      (teacher.max - student.max) * row.inverse_t + std::log(teacher.sum) - std::log(student.sum);
  row.kd = weight * static_cast<A>(temperature);
  const A t_squared = static_cast<A>(temperature * temperature);
  if (kd.loss == KdLoss::forward_kl) {
    const ExpSum<A> cross = merge(all, r, &S::teacher_max, &S::cross, row.inverse_t);
    value = t_squared * (cross.sum * row.inverse_teacher_sum - row.lse_difference);
  } else if (kd.loss == KdLoss::reverse_kl) {
    const ExpSum<A> cross = merge(all, r, &S::student_max, &S::cross, row.inverse_t);
    row.mean_slope = cross.sum * row.inverse_sum + row.lse_difference;
    value = t_squared * row.mean_slope;
  }
}

template <typename T>
void DenseChunk<T>::merge_statistics() {
  using S = DenseStatistics<A>;
  const at::Tensor own = empty_statistics(losses.ce_N, num_rows(), sizeof(S) / sizeof(A));
  dense_statistics<T>(logits_Cv.const_data_ptr<T>(), teacher(), labels(), flags(),
                      rows.inverse_t_C.const_data_ptr<A>(), num_rows(), logits_Cv.size(1), kd.loss,
                      reinterpret_cast<S*>(own.data_ptr<A>()));
  const Gathered<S, A> all{gather_statistics(own, tp), tp.size(), num_rows()};
  merged.assign(static_cast<std::size_t>(num_rows()), DenseRow<A>{});
  for (std::int64_t r = 0; r < num_rows(); ++r) {
    if (flags()[r] != 0) {
      merge_row(all, r);
    }
  }
}

template <typename T>
void DenseChunk<T>::add_divergence_sums() {
  using S = DivergenceSums<A>;
  const at::Tensor own = empty_statistics(losses.ce_N, num_rows(), sizeof(S) / sizeof(A));
  divergence_sums<T>(logits_Cv.const_data_ptr<T>(), teacher(), flags(), merged.data(), num_rows(),
                     logits_Cv.size(1), kd.loss, parameter(), reinterpret_cast<S*>(own.data_ptr<A>()));
  const Gathered<S, A> all{gather_statistics(own, tp), tp.size(), num_rows()};
  for (std::int64_t r = 0; r < num_rows(); ++r) {
    if ((flags()[r] & row_has_teacher) != 0) {
      const double temperature = rows.temperature_C.const_data_ptr<double>()[r];
      merged[static_cast<std::size_t>(r)].mean_slope = add_up(all, r, &S::mean_slope);
      losses.kd_N.data_ptr<A>()[r] = static_cast<A>(temperature * temperature) * add_up(all, r, &S::value);
    }
  }
}

template <typename T>
TokenLosses DenseChunk<T>::run() {
  losses.ce_N = at::zeros({num_rows()}, rows.ce_weight_C.options());
  losses.kd_N = at::zeros({num_rows()}, rows.ce_weight_C.options());
  merge_statistics();
  if (teacher_Cv.defined() && needs_divergence_sums(kd.loss)) {
    add_divergence_sums();
  }
  if (options.wants_gradient) {
    dense_backward<T>(logits_Cv.data_ptr<T>(), teacher(), labels(), flags(), merged.data(), num_rows(),
                      logits_Cv.size(1), kd.loss, parameter());
  }
  return losses;
}

}  // namespace

TokenLosses dense_chunk(at::Tensor& logits_Cv, const ChunkRows& rows, const at::Tensor& teacher_Cv,
                        const KdOptions& kd, const parallel::Communicator& tp, const ChunkOptions& options) {
  ATHANOR_CHECK(!teacher_Cv.defined() || teacher_Cv.sizes() == logits_Cv.sizes(),
                "the teacher's slice of the vocabulary is another than the student's");
  TokenLosses losses;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits_Cv.scalar_type(), "dense_chunk", [&] {
    losses = DenseChunk<scalar_t>{logits_Cv, rows, teacher_Cv, kd.canonical(), tp, options}.run();
  });
  return losses;
}

}  // namespace athanor::distill::detail
