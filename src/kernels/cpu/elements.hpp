// Loads, stores, exp and lane-wise sums for kernel bodies. Everything is inlined into the body's instruction
// set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/dispatch.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels::cpu {

// Widening to the accumulation type.
ATHANOR_KERNEL_INLINE float load(float x) {
  return x;
}
ATHANOR_KERNEL_INLINE double load(double x) {
  return x;
}
ATHANOR_KERNEL_INLINE float load(c10::BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.x) << 16);
}
ATHANOR_KERNEL_INLINE float load(c10::Half x) {
  return static_cast<float>(x);
}

/// Rounds to T: to nearest, ties to even; NaN stays NaN.
template <typename T, typename A>
ATHANOR_KERNEL_INLINE T store(A x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(static_cast<float>(x));
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return c10::BFloat16(static_cast<std::uint16_t>(is_nan ? quiet_nan : rounded),
                         c10::BFloat16::from_bits());
  } else {
    return static_cast<T>(x);
  }
}

/// x rounded to T and widened again: what a separate pass would have left in memory.
template <typename T, typename A>
ATHANOR_KERNEL_INLINE A round_through(A x) {
  if constexpr (std::is_same_v<T, A>) {
    return x;
  } else {
    return load(store<T>(x));
  }
}

/// e^x within 1 ulp for f32 in a form that loops vectorise (the C library's is a call per element): 2^n *
/// p(r), with the Cephes polynomial. Below -87.3 the result is 0 (no denormals), above 88.3 that of 88.3; NaN
/// gives NaN.
ATHANOR_KERNEL_INLINE float fast_exp(float x) {
  constexpr float round_to_integer =
      12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float clamped_below = x < -87.3f ? -87.3f : x;
  const float clamped = clamped_below > 88.3f ? 88.3f : clamped_below;
  const float shifted = clamped * 1.44269504088896341f + round_to_integer;
  const float n = shifted - round_to_integer;
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u;
  return x < -87.3f ? 0.0f : p * std::bit_cast<float>(exponent);
}
ATHANOR_KERNEL_INLINE double fast_exp(double x) {
  return std::exp(x);
}

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
