// What the dense and the sparse loss of a chunk share: the rows' flags, labels, weights and temperatures,
// made ready for the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "distill/distill_loss.hpp"

namespace athanor::distill::detail {

/// Rows of one chunk. All tensors are contiguous; A is the accumulation type of the logits.
struct ChunkRows {
  at::Tensor labels_C;             ///< int64 index into the slice; outside of it elsewhere
  at::Tensor flags_C;              ///< uint8, row_has_label and row_has_teacher
  at::Tensor ce_weight_C;          ///< A
  at::Tensor kd_weight_C;          ///< A, 0 without a teacher
  at::Tensor temperature_C;        ///< f64, 1 without a teacher
  at::Tensor inverse_t_C;          ///< A
  at::Tensor temperature_index_C;  ///< int64

  /// Checks shapes and reads the terms; collective over nothing.
  static ChunkRows of(const at::Tensor& logits_Cv, const TokenTerms& terms, const TeacherSignal& signal,
                      std::int64_t first_id);
};

/// The ranks' statistics of the rows, [tp, C, n] of A, for a struct of n numbers.
template <typename Statistics, typename A>
struct Gathered {
  at::Tensor all;  ///< keeps the storage
  std::int64_t ranks;
  std::int64_t rows;
  const Statistics& at(std::int64_t rank, std::int64_t row) const {
    return reinterpret_cast<const Statistics*>(all.const_data_ptr<A>())[rank * rows + row];
  }
};

/// A sum of exponentials relative to a maximum, merged over slices in rank order.
template <typename A>
struct ExpSum {
  A max;
  A sum;
  A log_sum(A inverse_t) const { return max * inverse_t + std::log(sum); }
};

/// Sum over ranks of sum_r * e^((max_r - max) / t) for members `max` and `sum` of the statistics.
template <typename A, typename Statistics>
ExpSum<A> merge(const Gathered<Statistics, A>& gathered, std::int64_t row, A Statistics::*max,
                A Statistics::*sum, A inverse_t) {
  ExpSum<A> result{gathered.at(0, row).*max, A(0)};
  for (std::int64_t rank = 1; rank < gathered.ranks; ++rank) {
    result.max = std::max(result.max, gathered.at(rank, row).*max);
  }
  for (std::int64_t rank = 0; rank < gathered.ranks; ++rank) {
    const Statistics& slice = gathered.at(rank, row);
    result.sum += slice.*sum == A(0) ? A(0) : slice.*sum * std::exp((slice.*max - result.max) * inverse_t);
  }
  return result;
}

/// Plain sum over ranks of a member.
template <typename A, typename Statistics>
A add_up(const Gathered<Statistics, A>& gathered, std::int64_t row, A Statistics::*member) {
  A sum = 0;
  for (std::int64_t rank = 0; rank < gathered.ranks; ++rank) {
    sum += gathered.at(rank, row).*member;
  }
  return sum;
}

/// An uninitialised [rows, sizeof(Statistics) / sizeof(A)] tensor for the kernels to fill.
at::Tensor empty_statistics(const at::Tensor& like, std::int64_t rows, std::size_t numbers);
/// [rows, n] of each rank -> [tp, rows, n].
at::Tensor gather_statistics(const at::Tensor& statistics, const parallel::Communicator& tp);

TokenLosses dense_chunk(at::Tensor& logits_Cv, const ChunkRows& rows, const at::Tensor& teacher_Cv,
                        const KdOptions& kd, const parallel::Communicator& tp, const ChunkOptions& options);
TokenLosses sparse_chunk(at::Tensor& logits_Cv, const ChunkRows& rows, const TeacherSignal& signal,
                         const parallel::Communicator& tp, const ChunkOptions& options);

}  // namespace athanor::distill::detail
