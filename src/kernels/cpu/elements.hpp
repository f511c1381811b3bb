// Loads, stores, exp (bodies/elements.hpp) and lane-wise sums for the CPU's loops. Everything is inlined into
// a loop's instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/bodies/elements.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels::cpu {

using bodies::fast_exp;
using bodies::load;
using bodies::round_through;
using bodies::store;

/// Independent partial sums that a loop over a row fills in turn: element i goes to lane i mod width, and
/// total() adds the lanes pairwise, so the order depends on the row's length alone.
template <typename A>
struct LaneSum {
  static constexpr int width = 16;
  A lane[width] = {};
  ATHANOR_KERNEL_INLINE A total() const {
    A pair[width];
    for (int j = 0; j < width; ++j) {
      pair[j] = lane[j];
    }
    for (int step = width / 2; step > 0; step /= 2) {
      for (int j = 0; j < step; ++j) {
        pair[j] += pair[j + step];
      }
    }
    return pair[0];
  }
};

/// Sum of x[i] * y[i] over a row.
template <typename A, typename T>
ATHANOR_KERNEL_INLINE A dot(const T* x, const T* y, std::int64_t n) {
  LaneSum<A> sum;
  std::int64_t i = 0;
  for (; i + LaneSum<A>::width <= n; i += LaneSum<A>::width) {
    for (int j = 0; j < LaneSum<A>::width; ++j) {
      sum.lane[j] += static_cast<A>(load(x[i + j])) * static_cast<A>(load(y[i + j]));
    }
  }
  for (int j = 0; i < n; ++i, ++j) {
    sum.lane[j] += static_cast<A>(load(x[i])) * static_cast<A>(load(y[i]));
  }
  return sum.total();
}

/// Largest x[i] of a row, -infinity of an empty one; NaN are passed over.
template <typename A, typename T>
ATHANOR_KERNEL_INLINE A row_maximum(const T* x, std::int64_t n) {
  constexpr int lanes = LaneSum<A>::width;
  A largest[lanes];
  for (int j = 0; j < lanes; ++j) {
    largest[j] = -std::numeric_limits<A>::infinity();
  }
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int j = 0; j < lanes; ++j) {
      const A value = load(x[i + j]);
      largest[j] = value > largest[j] ? value : largest[j];
    }
  }
  A result = largest[0];
  for (int j = 1; j < lanes; ++j) {
    result = largest[j] > result ? largest[j] : result;
  }
  for (; i < n; ++i) {
    const A value = load(x[i]);
    result = value > result ? value : result;
  }
  return result;
}

}  // namespace athanor::kernels::cpu
