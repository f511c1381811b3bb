// Loops over a row in lanes and tiles. Everything is inlined into the loop's instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/bodies/divergence.hpp"
#include "kernels/cpu/elements.hpp"

namespace athanor::distill::detail {

using kernels::bodies::exponential;
using kernels::bodies::fast_exp;
using kernels::bodies::finite_base;
using kernels::bodies::load;
using kernels::bodies::store;
using kernels::cpu::LaneSum;

/// body(i, lane) for each i in [0, n), lane = i mod LaneSum::width.
template <typename Body>
ATHANOR_KERNEL_INLINE void for_each_lane(std::int64_t n, const Body& body) {
  constexpr int lanes = LaneSum<float>::width;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int j = 0; j < lanes; ++j) {
      body(i + j, j);
    }
  }
  for (int j = 0; i < n; ++i, ++j) {
    body(i, j);
  }
}

/// Elements of a row that are worked on at one time: a loop over them for each quantity, through buffers on
/// the stack. The compiler vectorises such small loops; a single one with several exponentials and selections
/// it leaves scalar in some instantiations, which costs five times as much.
inline constexpr int tile = 256;

/// body(first, count) for each tile of [0, n); tiles begin at multiples of the lanes.
template <typename Body>
ATHANOR_KERNEL_INLINE void for_each_tile(std::int64_t n, const Body& body) {
  for (std::int64_t first = 0; first < n; first += tile) {
    body(first, static_cast<int>(n - first < tile ? n - first : tile));
  }
}

/// sum += x[i] in lanes: the order of for_each_lane.
template <typename A>
ATHANOR_KERNEL_INLINE void add_lanes(LaneSum<A>& sum, const A* x, int n) {
  constexpr int lanes = LaneSum<A>::width;
  int i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int j = 0; j < lanes; ++j) {
      sum.lane[j] += x[i + j];
    }
  }
  for (int j = 0; i < n; ++i, ++j) {
    sum.lane[j] += x[i];
  }
}

/// result[i] = factor * e^((x[i] - base) * inverse_t)
template <typename T, typename A>
ATHANOR_KERNEL_INLINE void exponentials(const T* x, A base, A inverse_t, A factor, int n, A* result) {
  for (int i = 0; i < n; ++i) {
    result[i] = exponential(A(load(x[i])), base, inverse_t, factor);
  }
}

}  // namespace athanor::distill::detail
