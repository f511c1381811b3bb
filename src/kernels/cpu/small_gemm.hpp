// Products of small blocks that lie in the cache, for kernel bodies: register tiles of 8 rows by 2 vectors.
#pragma once

#include <cstdint>

#include "kernels/cpu/dispatch.hpp"

namespace athanor::kernels::cpu {

/// One vector register's worth (64 bytes) of A; the compiler splits it where registers are smaller.
template <typename A>
struct Vector {
  typedef A type __attribute__((vector_size(64), aligned(alignof(A)), may_alias));
  static constexpr std::int64_t lanes = 64 / sizeof(A);
};

inline constexpr std::int64_t gemm_row_tile = 8;

/// n rounded up to a multiple of `unit`.
constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// A block's left operand: element (row, k) is data[row * row_stride + k * depth_stride].
template <typename A>
struct LeftOperand {
  const A* data;
  std::int64_t row_stride;
  std::int64_t depth_stride;
};

enum class Store { overwrite, add };

/// 8 rows by `vectors` vectors of c (+)= a b.
template <int vectors, Store mode, typename A>
ATHANOR_KERNEL_INLINE void gemm_tile(LeftOperand<A> a, const A* b, std::int64_t b_stride, std::int64_t depth,
                                     A* c, std::int64_t c_stride) {
  using V = typename Vector<A>::type;
  constexpr std::int64_t lanes = Vector<A>::lanes;
  V sum[gemm_row_tile][vectors] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    V right[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      right[v] = *reinterpret_cast<const V*>(b + k * b_stride + v * lanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < gemm_row_tile; ++r) {
      const A left = a.data[r * a.row_stride + k * a.depth_stride];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        sum[r][v] += left * right[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < gemm_row_tile; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      V* out = reinterpret_cast<V*>(c + r * c_stride + v * lanes);
      *out = mode == Store::add ? *out + sum[r][v] : sum[r][v];
    }
  }
}

/// c [rows, columns] (+)= a [rows, depth] b [depth, columns]; rows must be a multiple of gemm_row_tile,
/// columns of a vector's lanes. The order of additions depends on the sizes alone.
template <Store mode, typename A>
ATHANOR_KERNEL_INLINE void small_gemm(LeftOperand<A> a, const A* b, std::int64_t b_stride, std::int64_t rows,
                                      std::int64_t columns, std::int64_t depth, A* c, std::int64_t c_stride) {
  constexpr std::int64_t lanes = Vector<A>::lanes;
  for (std::int64_t row = 0; row < rows; row += gemm_row_tile) {
    const LeftOperand<A> left{a.data + row * a.row_stride, a.row_stride, a.depth_stride};
    std::int64_t column = 0;
    for (; column + 2 * lanes <= columns; column += 2 * lanes) {
      gemm_tile<2, mode>(left, b + column, b_stride, depth, c + row * c_stride + column, c_stride);
    }
    if (column < columns) {
      gemm_tile<1, mode>(left, b + column, b_stride, depth, c + row * c_stride + column, c_stride);
    }
  }
}

}  // namespace athanor::kernels::cpu
