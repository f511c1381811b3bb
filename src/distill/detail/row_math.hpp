// Loops over a row in lanes, and a logarithm, for kernel bodies. Everything is inlined into the body's
// instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/elements.hpp"

namespace athanor::distill::detail {

using kernels::cpu::fast_exp;
using kernels::cpu::LaneSum;
using kernels::cpu::load;
using kernels::cpu::store;

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
    result[i] = fast_exp((A(load(x[i])) - base) * inverse_t) * factor;
  }
}

/// A maximum that may be subtracted: 0 in place of -infinity (then every e^(x - base) is 0, not NaN).
template <typename A>
ATHANOR_KERNEL_INLINE A finite_base(A maximum) {
  return maximum == -std::numeric_limits<A>::infinity() ? A(0) : maximum;
}

/// log x for normal x > 0 within 1 ulp, in a form that loops vectorise (fdlibm's reduction and polynomial).
ATHANOR_KERNEL_INLINE float fast_log(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x) + (0x3f800000u - 0x3f3504f3u);
  const auto exponent = static_cast<float>(static_cast<std::int32_t>(bits >> 23) - 0x7f);
  const float f = std::bit_cast<float>((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float s = f / (2.0f + f);
  const float z = s * s;
  const float w = z * z;
  const float r = z * (0.66666662693f + w * 0.28498786688f) + w * (0.40000972152f + w * 0.24279078841f);
  const float half_square = 0.5f * f * f;
  return s * (half_square + r) + exponent * 9.0580006145e-06f - half_square + f +
         exponent * 6.9313812256e-01f;
}
ATHANOR_KERNEL_INLINE double fast_log(double x) {
  return std::log(x);
}

/// log(1 + x) for normal 1 + x: what rounding 1 + x lost is put back to first order.
ATHANOR_KERNEL_INLINE float fast_log1p(float x) {
  const float u = 1.0f + x;
  return fast_log(u) + (x - (u - 1.0f)) / u;
}
ATHANOR_KERNEL_INLINE double fast_log1p(double x) {
  return std::log1p(x);
}

ATHANOR_KERNEL_INLINE float fast_expm1(float x) {
  return fast_exp(x) - 1.0f;  // what is lost near 0 is below the rounding of x itself
}
ATHANOR_KERNEL_INLINE double fast_expm1(double x) {
  return std::expm1(x);
}

}  // namespace athanor::distill::detail
