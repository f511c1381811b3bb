// Row kernels of the student's loss against teacher logits of the same slice of the vocabulary.
//
// Legend: rows of a chunk, v vocabulary entries of this rank (may be 0), T the element type of the student's
// logits, A the accumulation type, in which the teacher's are. z student logits, u teacher logits, t
// temperature.
#pragma once

#include <cstdint>

#include "distill/kd_options.hpp"
#include "kernels/element.hpp"

namespace athanor::distill::detail {

using kernels::accumulation_t;

/// What a row takes part in.
inline constexpr std::uint8_t row_has_label = 1;
inline constexpr std::uint8_t row_has_teacher = 2;

/// Of one row's slice. Maxima are -infinity when the slice has no finite logit; the sums are then 0.
template <typename A>
struct DenseStatistics {
  A student_max;
  A student_sum_1;  ///< sum of e^(z - student_max)
  A student_sum;    ///< sum of e^((z - student_max) / t)
  A target;         ///< the label's z; 0 when the label is not in this slice
  A teacher_max;
  A teacher_sum;  ///< sum of e^((u - teacher_max) / t); logit_mse: the number of finite columns
  A cross;        ///< forward_kl: sum of e^((u - teacher_max) / t) (u - z) / t; reverse_kl: sum of
                  ///< e^((z - student_max) / t) (z - u) / t; logit_mse: sum of (u - z)^2; else 0
};

/// Of one row over the whole vocabulary.
template <typename A>
struct DenseRow {
  A inverse_t;
  A student_max;
  A inverse_sum_1;  ///< 1 / sum of e^(z - student_max)
  A inverse_sum;    ///< 1 / sum of e^((z - student_max) / t)
  A teacher_max;
  A inverse_teacher_sum;
  A lse_difference;  ///< logsumexp(u / t) - logsumexp(z / t)
  A mean_slope;      ///< sum of q_v g_v, g the derivative of the divergence by q
  A ce;              ///< factor of d CE / d z
  A kd;              ///< factor of q (g - mean_slope), of q - p (forward_kl) or of z - u (logit_mse)
};

/// Sums over a row's slice that need both logsumexps: of the divergence's terms and of q_v g_v.
template <typename A>
struct DivergenceSums {
  A value;
  A mean_slope;
};

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
