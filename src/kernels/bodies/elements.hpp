// Loads, stores, exponentials and logarithms of kernel bodies.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/bodies/body.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels::bodies {

template <typename A>
ATHANOR_BODY A minus_infinity() {
  constexpr A value = -std::numeric_limits<A>::infinity();
  return value;
}

template <typename A>
ATHANOR_BODY A largest_finite() {
  constexpr A value = std::numeric_limits<A>::max();
  return value;
}

// Widening to the accumulation type.
ATHANOR_BODY float load(float x) {
  return x;
}
ATHANOR_BODY double load(double x) {
  return x;
}
ATHANOR_BODY float load(c10::BFloat16 x) {
  return bits_as<float>(static_cast<std::uint32_t>(x.x) << 16);
}
ATHANOR_BODY float load(c10::Half x) {
  return static_cast<float>(x);
}

/// Rounds to T: to nearest, ties to even; NaN stays NaN.
template <typename T, typename A>
ATHANOR_BODY T store(A x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const std::uint32_t bits = bits_as<std::uint32_t>(static_cast<float>(x));
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
ATHANOR_BODY A round_through(A x) {
  if constexpr (std::is_same_v<T, A>) {
    return x;
  } else {
    return load(store<T>(x));
  }
}

/// e^x within 1 ulp for f32 in a form that loops vectorise (the C library's is a call per element): 2^n *
/// p(r), with the Cephes polynomial. Below -87.3 the result is 0 (no denormals), above 88.3 that of 88.3; NaN
/// gives NaN.
ATHANOR_BODY float fast_exp(float x) {
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
  const std::uint32_t exponent = (bits_as<std::uint32_t>(shifted) << 23) + 0x3f800000u;
  return x < -87.3f ? 0.0f : p * bits_as<float>(exponent);
}
ATHANOR_BODY double fast_exp(double x) {
  return std::exp(x);
}

/// log x for normal x > 0 within 1 ulp, in a form that loops vectorise (fdlibm's reduction and polynomial).
ATHANOR_BODY float fast_log(float x) {
  const std::uint32_t bits = bits_as<std::uint32_t>(x) + (0x3f800000u - 0x3f3504f3u);
  const auto exponent = static_cast<float>(static_cast<std::int32_t>(bits >> 23) - 0x7f);
  const float f = bits_as<float>((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float s = f / (2.0f + f);
  const float z = s * s;
  const float w = z * z;
  const float r = z * (0.66666662693f + w * 0.28498786688f) + w * (0.40000972152f + w * 0.24279078841f);
  const float half_square = 0.5f * f * f;
  return s * (half_square + r) + exponent * 9.0580006145e-06f - half_square + f +
         exponent * 6.9313812256e-01f;
}
ATHANOR_BODY double fast_log(double x) {
  return std::log(x);
}

/// log(1 + x) for normal 1 + x: what rounding 1 + x lost is put back to first order.
ATHANOR_BODY float fast_log1p(float x) {
  const float u = 1.0f + x;
  return fast_log(u) + (x - (u - 1.0f)) / u;
}
ATHANOR_BODY double fast_log1p(double x) {
  return std::log1p(x);
}

ATHANOR_BODY float fast_expm1(float x) {
  return fast_exp(x) - 1.0f;  // what is lost near 0 is below the rounding of x itself
}
ATHANOR_BODY double fast_expm1(double x) {
  return std::expm1(x);
}

/// A maximum that may be subtracted: 0 in place of -infinity (then every e^(x - base) is 0, not NaN).
template <typename A>
ATHANOR_BODY A finite_base(A maximum) {
  return maximum == minus_infinity<A>() ? A(0) : maximum;
}

}  // namespace athanor::kernels::bodies
