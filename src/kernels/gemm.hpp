// One matrix product on one thread. kernels/grouped_gemm.hpp takes it where it beats the library's.
#pragma once

#include <cstdint>

#include "kernels/element.hpp"

namespace athanor::kernels {

/// An operand: element (row, column) is data[row * row_stride + column * column_stride], and one of the
/// strides is 1.
template <typename T>
struct Operand {
  const T* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
};

/// What happens to the values that the result's memory has already.
enum class GemmMode { overwrite, add };

struct GemmShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t depth = 0;
};

// c [rows, columns] (+)= a [rows, depth] b [depth, columns]; rows of c lie c_stride elements apart. Sums are
// made in f32, in the order of the depth for each element alone: its bits do not depend on the other rows and
// columns. C is T or, for bf16, float; add is for C = float.
namespace cpu {

/// Whether gemm() runs on this CPU: AVX-512 for f32, AVX-512 BF16 for bf16.
template <typename T>
bool has_gemm();
/// Whether it beats the library's product on one thread of this CPU. From measurements (docs/performance.md)
/// by kind of CPU, never of this run: f32 on AMD, where the library keeps to AVX2; bf16 wherever there is no
/// matrix unit (AMX).
template <typename T>
bool gemm_is_fastest();

/// Needs has_gemm<T>().
template <typename T, typename C>
void gemm(const Operand<T>& a, const Operand<T>& b, const GemmShape& shape, GemmMode mode, C* c,
          std::int64_t c_stride);

}  // namespace cpu

namespace reference {

template <typename T, typename C>
void gemm(const Operand<T>& a, const Operand<T>& b, const GemmShape& shape, GemmMode mode, C* c,
          std::int64_t c_stride);

}  // namespace reference

}  // namespace athanor::kernels
