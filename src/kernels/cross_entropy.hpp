// Softmax cross-entropy over rows of logits of which this rank holds a slice of the vocabulary.
//
// Legend: rows, v vocabulary entries of this rank (may be 0), A the accumulation type.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

/// Of one row's slice. Slices combine as M = max of maximum; S = sum of sum_exp * e^(maximum - M); CE = M +
/// log S - sum of target.
template <typename A>
struct SoftmaxStatistics {
  A maximum;  ///< largest logit; -infinity when v = 0
  A sum_exp;  ///< sum of e^(logit - maximum); 0 when v = 0
  A target;   ///< the label's logit; 0 when the label is not in this slice
};

// softmax_statistics: labels are indices into the slice; any outside [0, v) is not in it.
// join_softmax_statistics: of `slices` slices, [slices, rows], in their order: maximum and inverse_sum of the
//   whole vocabulary and the loss of each row; ignored rows have inverse_sum and loss 0. A is f32 or f64.
// cross_entropy_backward: in place, logits [rows, v] become gradient_scale times the gradient of the sum of
// CE:
//   gradient_scale * (e^(logit - maximum) * inverse_sum - [label]); a row with inverse_sum 0 (an ignored
//   label) becomes 0. `maximum` and `inverse_sum` are those of the whole vocabulary.
namespace cpu {
template <typename T>
void softmax_statistics(const T* logits, const std::int64_t* labels, std::int64_t rows, std::int64_t vocab,
                        SoftmaxStatistics<accumulation_t<T>>* statistics);
template <typename A>
void join_softmax_statistics(const SoftmaxStatistics<A>* statistics, std::int64_t slices, std::int64_t rows,
                             const bool* ignored, A* maximum, A* inverse_sum, A* loss);
template <typename T>
void cross_entropy_backward(T* logits, const std::int64_t* labels, const accumulation_t<T>* maximum,
                            const accumulation_t<T>* inverse_sum, std::int64_t rows, std::int64_t vocab,
                            accumulation_t<T> gradient_scale);
}  // namespace cpu

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {
template <typename T>
void softmax_statistics(const T* logits, const std::int64_t* labels, std::int64_t rows, std::int64_t vocab,
                        SoftmaxStatistics<accumulation_t<T>>* statistics, device::StreamHandle stream);
template <typename A>
void join_softmax_statistics(const SoftmaxStatistics<A>* statistics, std::int64_t slices, std::int64_t rows,
                             const bool* ignored, A* maximum, A* inverse_sum, A* loss,
                             device::StreamHandle stream);
template <typename T>
void cross_entropy_backward(T* logits, const std::int64_t* labels, const accumulation_t<T>* maximum,
                            const accumulation_t<T>* inverse_sum, std::int64_t rows, std::int64_t vocab,
                            accumulation_t<T> gradient_scale, device::StreamHandle stream);
}  // namespace cuda

namespace reference {
template <typename T>
void softmax_statistics(const T* logits, const std::int64_t* labels, std::int64_t rows, std::int64_t vocab,
                        SoftmaxStatistics<accumulation_t<T>>* statistics);
template <typename T>
void cross_entropy_backward(T* logits, const std::int64_t* labels, const accumulation_t<T>* maximum,
                            const accumulation_t<T>* inverse_sum, std::int64_t rows, std::int64_t vocab,
                            accumulation_t<T> gradient_scale);
}  // namespace reference

}  // namespace athanor::kernels
