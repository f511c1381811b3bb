// Row kernels of the student's loss against teacher logits of the same slice of the vocabulary.
//
// Legend: rows of a chunk, v vocabulary entries of this rank (may be 0), T the element type of the student's
// logits, A the accumulation type, in which the teacher's are. z student logits, u teacher logits, t
// temperature.
#pragma once

#include <cstdint>

#include "distill/kd_options.hpp"
#include "kernels/distillation.hpp"

namespace athanor::distill::detail {

using kernels::accumulation_t;

using kernels::DenseRow;
using kernels::DenseStatistics;
using kernels::DivergenceSums;
using kernels::row_has_label;
using kernels::row_has_teacher;

/// labels: indices into the slice, any outside [0, v) is not in it. teacher may be null if no row has a
/// teacher.
template <typename T>
void dense_statistics(const T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                      const std::uint8_t* flags, const accumulation_t<T>* inverse_t, std::int64_t rows,
                      std::int64_t vocab, KdLoss loss, DenseStatistics<accumulation_t<T>>* statistics);

/// For skew_kl, skew_reverse_kl and jsd; `parameter` is the skew or beta.
template <typename T>
void divergence_sums(const T* student, const accumulation_t<T>* teacher, const std::uint8_t* flags,
                     const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows, std::int64_t vocab,
                     KdLoss loss, accumulation_t<T> parameter, DivergenceSums<accumulation_t<T>>* sums);

/// In place: student logits become the gradient.
template <typename T>
void dense_backward(T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                    const std::uint8_t* flags, const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows,
                    std::int64_t vocab, KdLoss loss, accumulation_t<T> parameter);

}  // namespace athanor::distill::detail
