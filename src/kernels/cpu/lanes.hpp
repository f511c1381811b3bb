// Sixteen numbers at a time in one vector, for kernel bodies whose plain loops the compiler does not
// vectorise well: 16-bit elements and exponentials. Vectors go by reference, for not every instruction set
// passes them in registers.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/cpu/dispatch.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels::cpu {

typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::uint32_t LaneBits __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::uint16_t HalfLanes __attribute__((vector_size(32), aligned(2), may_alias));
inline constexpr std::int64_t num_lanes = 16;

/// The element types that can be read as Lanes.
template <typename T>
inline constexpr bool has_lanes = std::is_same_v<T, float> || std::is_same_v<T, c10::BFloat16>;

ATHANOR_KERNEL_INLINE void load_lanes(const float* x, Lanes& out) {
  out = *reinterpret_cast<const Lanes*>(x);
}
ATHANOR_KERNEL_INLINE void load_lanes(const c10::BFloat16* x, Lanes& out) {
  const HalfLanes halves = *reinterpret_cast<const HalfLanes*>(x);
  out = reinterpret_cast<Lanes>(__builtin_convertvector(halves, LaneBits) << 16);
}

ATHANOR_KERNEL_INLINE void store_lanes(const Lanes& x, float* out) {
  *reinterpret_cast<Lanes*>(out) = x;
}
/// x = e^x as fast_exp().
ATHANOR_KERNEL_INLINE void exp_lanes(Lanes& x) {
  constexpr float round_to_integer = 12582912.0f;
  const Lanes lowest = Lanes{} - 87.3f;
  const Lanes highest = Lanes{} + 88.3f;
  const Lanes raised = x < lowest ? lowest : x;
  const Lanes clamped = raised > highest ? highest : raised;
  const Lanes shifted = clamped * 1.44269504088896341f + round_to_integer;
  const Lanes n = shifted - round_to_integer;
  Lanes r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const LaneBits exponent = (reinterpret_cast<LaneBits>(shifted) << 23) + 0x3f800000u;
  x = x < lowest ? Lanes{} : p * reinterpret_cast<Lanes>(exponent);
}

}  // namespace athanor::kernels::cpu
