// The element types of kernels and the type that sums and statistics of each are made in.
#pragma once

#include <type_traits>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace athanor::kernels {

/// f64 for f64; f32 for f32, bf16 and fp16.
template <typename T>
using accumulation_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace athanor::kernels

/// Instantiates `macro(T)` for every element type of the fast kernels.
#define ATHANOR_FOR_EACH_ELEMENT(macro) macro(float) macro(double) macro(c10::BFloat16) macro(c10::Half)
