#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "base/error.hpp"
#include "distill/detail/chunk_rows.hpp"
#include "distill/detail/sparse_kernels.hpp"

namespace athanor::distill::detail {
namespace {

/// A tail of less mass than e^this is no bucket: its term is below rounding. Decided on the teacher's side
/// alone, since the student's must keep its gradient however small it is.
constexpr double smallest_log_tail = -60.0;

/// The teacher's side of the rows, at each row's own temperature.
struct SparseTargets {
  at::Tensor ids_CK;      ///< int32
  at::Tensor weight_CK;   ///< A: s
  at::Tensor level_CK;    ///< A: c
  at::Tensor log_tail_C;  ///< A; -infinity: none
  at::Tensor constant_C;  ///< A
};

/// Column of each row's temperature of x [C, J, ...].
at::Tensor at_temperature(const at::Tensor& x_CJ, const at::Tensor& index_C) {
  at::Tensor index = index_C;
  for (std::int64_t dim = 1; dim < x_CJ.dim(); ++dim) {
    index = index.unsqueeze(-1);
  }
  std::vector<std::int64_t> shape = x_CJ.sizes().vec();
  shape[1] = 1;
  return x_CJ.gather(1, index.expand(shape)).squeeze(1);
}

SparseTargets targets_of(const TopKSignal& topk, const ChunkRows& rows) {
  const at::ScalarType type = rows.inverse_t_C.scalar_type();
  const at::Tensor lse_C = at_temperature(topk.lse_NJ.to(type), rows.temperature_index_C);
  SparseTargets targets;
  targets.ids_CK = topk.ids_NK.contiguous();
  const at::Tensor scaled = topk.logits_NK.to(type) * rows.inverse_t_C.unsqueeze(1);
  const at::Tensor absent = targets.ids_CK.lt(0);
  targets.weight_CK = at::exp(scaled - lse_C.unsqueeze(1)).masked_fill_(absent, 0.0).contiguous();
  targets.level_CK = scaled.masked_fill(absent, 0.0).contiguous();
  targets.log_tail_C = at_temperature(topk.log_tail_NJ.to(type), rows.temperature_index_C).contiguous();
  targets.constant_C = (-targets.weight_CK.sum(1) * lse_C).contiguous();
  return targets;
}

SparseTargets targets_of(const SampledSignal& sampled, const ChunkRows& rows) {
  const at::ScalarType type = rows.inverse_t_C.scalar_type();
  SparseTargets targets;
  targets.ids_CK = at_temperature(sampled.ids_NJM, rows.temperature_index_C).contiguous();
  const at::Tensor counts = at_temperature(sampled.counts_NJM, rows.temperature_index_C).to(type);
  targets.weight_CK = (counts / counts.sum(1, true).clamp_min(1)).contiguous();
  targets.level_CK = at::zeros_like(targets.weight_CK);
  targets.log_tail_C = at::full({counts.size(0)}, -std::numeric_limits<double>::infinity(), counts.options());
  targets.constant_C = -at_temperature(sampled.entropy_NJ.to(type), rows.temperature_index_C).contiguous();
  return targets;
}

template <typename T>
struct SparseChunk {
  using A = accumulation_t<T>;
  using S = SparseStatistics<A>;
  at::Tensor& logits_Cv;
  const ChunkRows& rows;
  const SparseTargets& targets;
  const parallel::Communicator& tp;
  const ChunkOptions& options;
  TokenLosses losses{};
  std::vector<SparseRow<A>> merged{};

  std::int64_t num_rows() const { return logits_Cv.size(0); }
  const std::uint8_t* flags() const { return rows.flags_C.const_data_ptr<std::uint8_t>(); }
  const std::int64_t* labels() const { return rows.labels_C.const_data_ptr<std::int64_t>(); }
  SparseTeacher<A> teacher() const {
    return {targets.ids_CK.const_data_ptr<std::int32_t>(), targets.weight_CK.const_data_ptr<A>(),
            targets.level_CK.const_data_ptr<A>(), targets.ids_CK.size(1), options.first_id};
  }

  void merge_row(const Gathered<S, A>& all, std::int64_t r);
  void merge_teacher(const Gathered<S, A>& all, std::int64_t r, A max);
  TokenLosses run();
};

template <typename T>
void SparseChunk<T>::merge_teacher(const Gathered<S, A>& all, std::int64_t r, A max) {
  SparseRow<A>& row = merged[static_cast<std::size_t>(r)];
  const ExpSum<A> inside = merge(all, r, &S::max, &S::sum_in, row.inverse_t);
  const ExpSum<A> outside = merge(all, r, &S::max_out, &S::sum_out, row.inverse_t);
  const bool has_outside = outside.sum > A(0);
  const A outside_share = has_outside ? outside.sum * std::exp((outside.max - max) * row.inverse_t) : A(0);
  row.lse = max * row.inverse_t + std::log(inside.sum + outside_share);
  row.max_out = outside.max;
  row.lse_out = has_outside ? outside.log_sum(row.inverse_t) : -std::numeric_limits<A>::infinity();
  const A log_tail = targets.log_tail_C.const_data_ptr<A>()[r];
  row.tail = log_tail > A(smallest_log_tail) ? std::exp(log_tail) : A(0);
  const std::int64_t num_ids = targets.weight_CK.size(1);
  row.weight = row.tail;
  for (std::int64_t k = 0; k < num_ids; ++k) {
    row.weight += targets.weight_CK.const_data_ptr<A>()[r * num_ids + k];
  }
  const A tail_value = row.tail == A(0) ? A(0) : row.tail * (log_tail - row.lse_out);
  const double temperature = rows.temperature_C.const_data_ptr<double>()[r];
  losses.kd_N.data_ptr<A>()[r] = static_cast<A>(temperature * temperature) *
                                 (targets.constant_C.const_data_ptr<A>()[r] + add_up(all, r, &S::dot) +
                                  tail_value + row.weight * row.lse);
  row.kd = rows.kd_weight_C.const_data_ptr<A>()[r] * static_cast<A>(options.gradient_scale * temperature);
}

template <typename T>
void SparseChunk<T>::merge_row(const Gathered<S, A>& all, std::int64_t r) {
  SparseRow<A>& row = merged[static_cast<std::size_t>(r)];
  row.inverse_t = rows.inverse_t_C.const_data_ptr<A>()[r];
  const ExpSum<A> student = merge(all, r, &S::max, &S::sum_1, A(1));
  row.max = row.max_out = student.max;
  row.inverse_sum_1 = A(1) / student.sum;
  row.ce = rows.ce_weight_C.const_data_ptr<A>()[r] * static_cast<A>(options.gradient_scale);
  row.lse = student.log_sum(row.inverse_t);
  if ((flags()[r] & row_has_label) != 0) {
    losses.ce_N.data_ptr<A>()[r] = student.log_sum(A(1)) - add_up(all, r, &S::target);
  }
  if ((flags()[r] & row_has_teacher) != 0) {
    merge_teacher(all, r, student.max);
  }
}

template <typename T>
TokenLosses SparseChunk<T>::run() {
  losses.ce_N = at::zeros({num_rows()}, rows.ce_weight_C.options());
  losses.kd_N = at::zeros({num_rows()}, rows.ce_weight_C.options());
  const at::Tensor own = empty_statistics(losses.ce_N, num_rows(), sizeof(S) / sizeof(A));
  std::vector<T> kept(static_cast<std::size_t>(targets.ids_CK.size(1)));
  sparse_statistics<T>(logits_Cv.data_ptr<T>(), teacher(), labels(), flags(),
                       rows.inverse_t_C.const_data_ptr<A>(), num_rows(), logits_Cv.size(1), kept.data(),
                       reinterpret_cast<S*>(own.data_ptr<A>()));
  const Gathered<S, A> all{gather_statistics(own, tp), tp.size(), num_rows()};
  merged.assign(static_cast<std::size_t>(num_rows()), SparseRow<A>{});
  for (std::int64_t r = 0; r < num_rows(); ++r) {
    if (flags()[r] != 0) {
      merge_row(all, r);
    }
  }
  if (options.wants_gradient) {
    sparse_backward<T>(logits_Cv.data_ptr<T>(), teacher(), labels(), flags(), merged.data(), num_rows(),
                       logits_Cv.size(1), kept.data());
  }
  return losses;
}

}  // namespace

TokenLosses sparse_chunk(at::Tensor& logits_Cv, const ChunkRows& rows, const TeacherSignal& signal,
                         const parallel::Communicator& tp, const ChunkOptions& options) {
  const auto* topk = std::get_if<TopKSignal>(&signal.payload);
  const SparseTargets targets =
      topk != nullptr ? targets_of(*topk, rows) : targets_of(std::get<SampledSignal>(signal.payload), rows);
  TokenLosses losses;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits_Cv.scalar_type(), "sparse_chunk", [&] {
    losses = SparseChunk<scalar_t>{logits_Cv, rows, targets, tp, options}.run();
  });
  return losses;
}

}  // namespace athanor::distill::detail
