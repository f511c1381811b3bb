// Sums and checks over flat ranges.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

namespace cpu {
/// Sum of x[i]^2 in f64, in an order that depends on `n` alone. f32 (and 16-bit) squares cannot overflow f64,
/// so for them the sum is finite if and only if every element is.
template <typename T>
double sum_of_squares(const T* x, std::int64_t n);
/// The same of each part of x: sums[p] of elements [p * part_size, (p + 1) * part_size), the last may be
/// shorter.
template <typename T>
void squares_of_parts(const T* x, std::int64_t n, std::int64_t part_size, double* sums);
/// True when an element is NaN or infinite.
template <typename T>
bool has_nonfinite(const T* x, std::int64_t n);
}  // namespace cpu

/// Numbers of working memory of cuda::sum_of_squares().
inline constexpr std::int64_t reduce_parts = 1024;

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {
/// *out = sum of x[i]^2 in f64, in an order that depends on `n` alone. `partial` has room for reduce_parts
/// numbers.
template <typename T>
void sum_of_squares(const T* x, std::int64_t n, double* partial, double* out, device::StreamHandle stream);
template <typename T>
void squares_of_parts(const T* x, std::int64_t n, std::int64_t part_size, double* sums,
                      device::StreamHandle stream);
/// *found = 1 if an element is NaN or infinite, else it stays as it is: one flag can serve many ranges.
template <typename T>
void find_nonfinite(const T* x, std::int64_t n, std::int32_t* found, device::StreamHandle stream);
}  // namespace cuda

namespace reference {
template <typename T>
double sum_of_squares(const T* x, std::int64_t n);
template <typename T>
bool has_nonfinite(const T* x, std::int64_t n);
}  // namespace reference

}  // namespace athanor::kernels
