// Rotary positions (Su et al. 2021) in Hugging Face's half-split layout, alone and behind a norm of each
// head.
//
// Legend: N tokens, H heads, C head width (even). cos and sin [N, C/2] in the accumulation type.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

/// Shape of an [N, H, C] array whose heads are dense and whose tokens are `token_stride` elements apart.
struct HeadsShape {
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t token_stride = 0;  ///< of the input x; outputs and their gradients are dense
};

/// The inverse rotation is the forward one's adjoint.
enum class RotaryDirection { forward, inverse };

// rotary:  y[i] = x[i] cos_i - x[i+C/2] sin_i,  y[i+C/2] = x[i+C/2] cos_i + x[i] sin_i; y [N, H, C] dense,
// may be x when
//          x is dense.
// head_norm_rotary_forward:  the same of rms_norm(x) over each head with weight [C] (see norm.hpp); rstd [N,
// H]. head_norm_rotary_backward: dx has x's token stride; dweight [C] is added to (nullptr: not wanted).
namespace cpu {
template <typename T>
void rotary(const T* x, const accumulation_t<T>* cos, const accumulation_t<T>* sin, const HeadsShape& shape,
            RotaryDirection direction, T* y);
template <typename T>
void head_norm_rotary_forward(const T* x, const T* weight, const accumulation_t<T>* cos,
                              const accumulation_t<T>* sin, const HeadsShape& shape, double eps, T* y,
                              accumulation_t<T>* rstd);
template <typename T>
void head_norm_rotary_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* cos,
                               const accumulation_t<T>* sin, const accumulation_t<T>* rstd,
                               const HeadsShape& shape, T* dx, accumulation_t<T>* dweight);
}  // namespace cpu

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {
template <typename T>
void rotary(const T* x, const accumulation_t<T>* cos, const accumulation_t<T>* sin, const HeadsShape& shape,
            RotaryDirection direction, T* y, device::StreamHandle stream);
template <typename T>
void head_norm_rotary_forward(const T* x, const T* weight, const accumulation_t<T>* cos,
                              const accumulation_t<T>* sin, const HeadsShape& shape, double eps, T* y,
                              accumulation_t<T>* rstd, device::StreamHandle stream);
/// `partial` [norm_partials, C] as for rms_norm_backward() (norm.hpp).
template <typename T>
void head_norm_rotary_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* cos,
                               const accumulation_t<T>* sin, const accumulation_t<T>* rstd,
                               const HeadsShape& shape, T* dx, accumulation_t<T>* dweight,
                               accumulation_t<T>* partial, device::StreamHandle stream);
}  // namespace cuda

namespace reference {
template <typename T>
void rotary(const T* x, const accumulation_t<T>* cos, const accumulation_t<T>* sin, const HeadsShape& shape,
            RotaryDirection direction, T* y);
template <typename T>
void head_norm_rotary_forward(const T* x, const T* weight, const accumulation_t<T>* cos,
                              const accumulation_t<T>* sin, const HeadsShape& shape, double eps, T* y,
                              accumulation_t<T>* rstd);
template <typename T>
void head_norm_rotary_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* cos,
                               const accumulation_t<T>* sin, const accumulation_t<T>* rstd,
                               const HeadsShape& shape, T* dx, accumulation_t<T>* dweight);
}  // namespace reference

}  // namespace athanor::kernels
