// The gated activation of feed-forward layers and experts. Shazeer 2020.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

// gate_up [rows, 2F] holds the gate in columns [0, F) and the other factor in [F, 2F); y [rows, F] =
// silu(gate) * up, with silu(g) = g / (1 + e^-g).
namespace cpu {
template <typename T>
void swiglu_forward(const T* gate_up, std::int64_t rows, std::int64_t ffn, T* y);
template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, std::int64_t rows, std::int64_t ffn, T* dgate_up);
}  // namespace cpu

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {
template <typename T>
void swiglu_forward(const T* gate_up, std::int64_t rows, std::int64_t ffn, T* y, device::StreamHandle stream);
template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, std::int64_t rows, std::int64_t ffn, T* dgate_up,
                     device::StreamHandle stream);
}  // namespace cuda

namespace reference {
template <typename T>
void swiglu_forward(const T* gate_up, std::int64_t rows, std::int64_t ffn, T* y);
template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, std::int64_t rows, std::int64_t ffn, T* dgate_up);
}  // namespace reference

}  // namespace athanor::kernels
