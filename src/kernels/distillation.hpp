// Row kernels of the student's loss against a teacher, over this rank's slice of the vocabulary, on a GPU.
// The CPU's are in distill, which has what is around them: the same structs, merged over the ranks' slices
// between the passes.
//
// Legend: rows of a chunk, v vocabulary entries of this rank (may be 0), K ids a row, T the element type of
// the student's logits z, A the accumulation type, in which the teacher's logits u are. t temperature, p =
// softmax(u / t), q = softmax(z / t).
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

/// What is minimised. All carry t^2, in value and gradient.
enum class Divergence {
  forward_kl,       ///< t^2 KL(p || q)
  reverse_kl,       ///< t^2 KL(q || p)
  skew_kl,          ///< t^2 KL(p || a p + (1-a) q) (Ko et al. 2024)
  skew_reverse_kl,  ///< t^2 KL(q || (1-a) p + a q)
  /// t^2 [b KL(p || M) + (1-b) KL(q || M)] / (b (1-b)) with M = b p + (1-b) q: forward KL at b -> 0, reverse
  /// KL at b -> 1, without a jump at either end
  jsd,
  logit_mse,  ///< t^2 mean over the vocabulary of (u/t - z/t)^2, which is that of (u - z)^2 for every t
};

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

/// Of one row's slice against K ids. Maxima are -infinity and sums 0 where there is nothing.
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

/// What the teacher says of the rows: ids are those of the whole vocabulary, different ones in a row, -1
/// where there is none.
template <typename A>
struct SparseTeacher {
  const std::int32_t* ids_K = nullptr;
  const A* weight_K = nullptr;  ///< s
  const A* level_K = nullptr;   ///< c
  std::int64_t num_ids = 0;     ///< K
  std::int64_t first_id = 0;    ///< of this rank's slice
};

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {

/// labels: indices into the slice, any outside [0, v) is not in it. teacher may be null if no row has a
/// teacher.
template <typename T>
void dense_statistics(const T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                      const std::uint8_t* flags, const accumulation_t<T>* inverse_t, std::int64_t rows,
                      std::int64_t vocab, Divergence loss, DenseStatistics<accumulation_t<T>>* statistics,
                      device::StreamHandle stream);

/// For skew_kl, skew_reverse_kl and jsd; `parameter` is the skew or beta.
template <typename T>
void divergence_sums(const T* student, const accumulation_t<T>* teacher, const std::uint8_t* flags,
                     const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows, std::int64_t vocab,
                     Divergence loss, accumulation_t<T> parameter, DivergenceSums<accumulation_t<T>>* sums,
                     device::StreamHandle stream);

/// In place: student logits become the gradient.
template <typename T>
void dense_backward(T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                    const std::uint8_t* flags, const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows,
                    std::int64_t vocab, Divergence loss, accumulation_t<T> parameter,
                    device::StreamHandle stream);

/// `student` is written to and restored. K logits of T must fit into a block's shared memory.
template <typename T>
void sparse_statistics(T* student, const SparseTeacher<accumulation_t<T>>& teacher,
                       const std::int64_t* labels, const std::uint8_t* flags,
                       const accumulation_t<T>* inverse_t, std::int64_t rows, std::int64_t vocab,
                       SparseStatistics<accumulation_t<T>>* statistics, device::StreamHandle stream);

/// In place: student logits become the gradient. K logits of T must fit into a block's shared memory.
template <typename T>
void sparse_backward(T* student, const SparseTeacher<accumulation_t<T>>& teacher, const std::int64_t* labels,
                     const std::uint8_t* flags, const SparseRow<accumulation_t<T>>* rows_of,
                     std::int64_t rows, std::int64_t vocab, device::StreamHandle stream);

}  // namespace cuda

}  // namespace athanor::kernels
