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

using kernels::SparseRow;
using kernels::SparseStatistics;
using kernels::SparseTeacher;

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
