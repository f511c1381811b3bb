// Sums and checks over flat ranges.
#pragma once

#include <cstdint>

#include "kernels/element.hpp"

namespace athanor::kernels {

namespace cpu {
/// Sum of x[i]^2 in f64, in an order that depends on `n` alone. f32 (and 16-bit) squares cannot overflow f64,
/// so for them the sum is finite if and only if every element is.
template <typename T>
double sum_of_squares(const T* x, std::int64_t n);
/// True when an element is NaN or infinite.
template <typename T>
bool has_nonfinite(const T* x, std::int64_t n);
}  // namespace cpu

namespace reference {
template <typename T>
double sum_of_squares(const T* x, std::int64_t n);
template <typename T>
bool has_nonfinite(const T* x, std::int64_t n);
}  // namespace reference

}  // namespace athanor::kernels
