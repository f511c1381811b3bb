// Numbers to FP8 codes and back by integer arithmetic that loops vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cpu/dispatch.hpp"

namespace athanor::kernels::cpu {

// The formats differ in these numbers alone. A code without its sign counts up through the numbers it stands
// for, as the bits of an f32 do, so between the two lies a shift and a difference of exponents.
struct E4m3 {
  static constexpr int dropped_bits = 20;                     // of f32's 23 bits of mantissa
  static constexpr std::uint32_t exponent_shift = 120u << 3;  // f32's bias 127 less 7, above the mantissa
  static constexpr std::int32_t first_normal = 0x08;
  static constexpr float smallest_normal = 0x1p-6f;
  static constexpr float subnormal_unit = 0x1p-9f;
  static constexpr float largest = 448.0f;
  static constexpr std::int32_t infinity = 0x80;  // it has none
  static constexpr std::int32_t first_nan = 0x7f;
};

struct E5m2 {
  static constexpr int dropped_bits = 21;
  static constexpr std::uint32_t exponent_shift = 112u << 2;
  static constexpr std::int32_t first_normal = 0x04;
  static constexpr float smallest_normal = 0x1p-14f;
  static constexpr float subnormal_unit = 0x1p-16f;
  static constexpr float largest = 57344.0f;
  static constexpr std::int32_t infinity = 0x7c;
  static constexpr std::int32_t first_nan = 0x7d;
};

inline constexpr std::uint32_t magnitude_mask = 0x7fffffffu;
inline constexpr std::uint32_t infinity_bits = 0x7f800000u;
inline constexpr std::uint32_t nan_bits = 0x7fc00000u;

ATHANOR_KERNEL_INLINE std::uint32_t bits_of(float x) {
  return std::bit_cast<std::uint32_t>(x);
}

/// condition ? a : b without a branch: where one side comes of floating-point arithmetic, which may trap, the
/// compiler would neither compute it always nor vectorise the loop.
ATHANOR_KERNEL_INLINE std::uint32_t select(bool condition, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

/// Code of x, 0 <= x <= largest (or above it by less than half a unit), rounded to nearest, ties to even.
template <typename F>
ATHANOR_KERNEL_INLINE std::uint32_t encode(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t below_half = (1u << (F::dropped_bits - 1)) - 1u;
  const std::uint32_t normal =
      ((bits + below_half + ((bits >> F::dropped_bits) & 1u)) >> F::dropped_bits) - F::exponent_shift;
  // In the sum the unit of the subnormals is the last bit of the mantissa, so the addition rounds.
  constexpr float align = F::subnormal_unit * 0x1p23f;
  const std::uint32_t subnormal = bits_of(x + align) - bits_of(align);
  return select(x < F::smallest_normal, subnormal, normal);
}

template <typename F>
ATHANOR_KERNEL_INLINE float decode(std::uint32_t code) {
  const auto magnitude = static_cast<std::int32_t>(code & 0x7fu);
  const std::uint32_t normal = (static_cast<std::uint32_t>(magnitude) + F::exponent_shift) << F::dropped_bits;
  const std::uint32_t subnormal = bits_of(static_cast<float>(magnitude) * F::subnormal_unit);
  std::uint32_t bits = select(magnitude < F::first_normal, subnormal, normal);
  bits = select(magnitude == F::infinity, infinity_bits, bits);
  bits = select(magnitude >= F::first_nan, nan_bits, bits);
  return std::bit_cast<float>(bits | ((code & 0x80u) << 24));
}

}  // namespace athanor::kernels::cpu
