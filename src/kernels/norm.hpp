// Root-mean-square normalisation of rows, in the order of operations of Hugging Face's Qwen3.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

// x [rows, width] dense, weight [width], rstd [rows] in the accumulation type A.
//   forward:  rstd = 1/sqrt(mean(x^2) + eps);  y = weight * T(x * rstd)
//   backward: with n = x * rstd and g = dy * weight,  dx = rstd * (g - n * mean(g * n)),  dweight += sum of
//   dy * n over
//             the rows, in row order (dweight in A; nullptr: not wanted).
namespace cpu {
template <typename T>
void rms_norm_forward(const T* x, const T* weight, std::int64_t rows, std::int64_t width, double eps, T* y,
                      accumulation_t<T>* rstd);
template <typename T>
void rms_norm_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* rstd,
                       std::int64_t rows, std::int64_t width, T* dx, accumulation_t<T>* dweight);
}  // namespace cpu

/// Numbers of working memory that the weight's gradient needs for each column, in the accumulation type.
inline constexpr std::int64_t norm_partials = 64;

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {
template <typename T>
void rms_norm_forward(const T* x, const T* weight, std::int64_t rows, std::int64_t width, double eps, T* y,
                      accumulation_t<T>* rstd, device::StreamHandle stream);
/// `partial` [norm_partials, width] is working memory, nullptr without dweight. Rows are added in an order of
/// their number alone.
template <typename T>
void rms_norm_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* rstd,
                       std::int64_t rows, std::int64_t width, T* dx, accumulation_t<T>* dweight,
                       accumulation_t<T>* partial, device::StreamHandle stream);
}  // namespace cuda

namespace reference {
template <typename T>
void rms_norm_forward(const T* x, const T* weight, std::int64_t rows, std::int64_t width, double eps, T* y,
                      accumulation_t<T>* rstd);
template <typename T>
void rms_norm_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* rstd,
                       std::int64_t rows, std::int64_t width, T* dx, accumulation_t<T>* dweight);
}  // namespace reference

}  // namespace athanor::kernels
