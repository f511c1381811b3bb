// Row kernels of the student's loss against a teacher that names K ids a token: the K largest with the mass
// of all others, or random draws.
//
// The loss of a row is t^2 [constant + sum_i s_i (c_i - z_i / t) + W lse + e^tail (tail - log q_out)] with
// weights s_i at the ids, W = sum s_i + e^tail, lse = logsumexp(z / t) and q_out the student's probability
// outside the ids.
//
// Legend: rows of a chunk, v vocabulary entries of this rank (may be 0), K ids a row, T the element type of
// the student's logits z, A the accumulation type, t temperature.
#pragma once

#include <cstdint>

#include "distill/detail/dense_kernels.hpp"

namespace athanor::distill::detail {

/// Of one row's slice. Maxima are -infinity and sums 0 where there is nothing.
template <typename A>
struct SparseStatistics {
  A max;      ///< largest z
  A sum_1;    ///< sum of e^(z - max)
  A sum_in;   ///< over the ids: sum of e^((z - max) / t)
  A max_out;  ///< largest z outside the ids
  A sum_out;  ///< outside the ids: sum of e^((z - max_out) / t)
  A target;   ///< the label's z; 0 when the label is not in this slice
  A dot;      ///< sum over the ids of this slice of s_i (c_i - z_i / t)
};

/// Of one row over the whole vocabulary.
template <typename A>
struct SparseRow {
  A inverse_t;
  A max;
  A inverse_sum_1;  ///< 1 / sum of e^(z - max)
  A lse;            ///< logsumexp(z / t)
  A max_out;
  A lse_out;  ///< logsumexp(z / t) outside the ids
  A weight;   ///< W
  A tail;     ///< probability of the teacher outside the ids; 0: none
  A ce;       ///< factor of d CE / d z
  A kd;       ///< factor of W q - s - [outside] tail q / q_out
};

/// What the teacher says of the rows: ids are those of the whole vocabulary, -1 where there is none.
template <typename A>
struct SparseTeacher {
  const std::int32_t* ids_K = nullptr;
  const A* weight_K = nullptr;  ///< s
  const A* level_K = nullptr;   ///< c
  std::int64_t num_ids = 0;     ///< K
  std::int64_t first_id = 0;    ///< of this rank's slice
};

/// `student` is written to and restored. `kept` has room for K logits.
template <typename T>
void sparse_statistics(T* student, const SparseTeacher<accumulation_t<T>>& teacher,
                       const std::int64_t* labels, const std::uint8_t* flags,
                       const accumulation_t<T>* inverse_t, std::int64_t rows, std::int64_t vocab, T* kept,
                       SparseStatistics<accumulation_t<T>>* statistics);

/// In place: student logits become the gradient. `kept` has room for K logits.
template <typename T>
void sparse_backward(T* student, const SparseTeacher<accumulation_t<T>>& teacher, const std::int64_t* labels,
                     const std::uint8_t* flags, const SparseRow<accumulation_t<T>>* rows_of,
                     std::int64_t rows, std::int64_t vocab, T* kept);

}  // namespace athanor::distill::detail
