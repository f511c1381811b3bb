// Numbers to FP8 codes and back by integer arithmetic that loops vectorise, and blocks of them.
#pragma once

#include "kernels/bodies/team.hpp"
#include "kernels/fp8.hpp"

namespace athanor::kernels::bodies {

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

/// Every element of a block that is not finite.
inline constexpr std::uint8_t fp8_nan_code = 0x7f;

ATHANOR_BODY std::uint32_t bits_of(float x) {
  return bits_as<std::uint32_t>(x);
}

/// Code of x, 0 <= x <= largest (or above it by less than half a unit), rounded to nearest, ties to even.
template <typename F>
ATHANOR_BODY std::uint32_t encode(float x) {
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
ATHANOR_BODY float decode(std::uint32_t code) {
  const auto magnitude = static_cast<std::int32_t>(code & 0x7fu);
  const std::uint32_t normal = (static_cast<std::uint32_t>(magnitude) + F::exponent_shift) << F::dropped_bits;
  const std::uint32_t subnormal = bits_of(static_cast<float>(magnitude) * F::subnormal_unit);
  std::uint32_t bits = select(magnitude < F::first_normal, subnormal, normal);
  bits = select(magnitude == F::infinity, infinity_bits, bits);
  bits = select(magnitude >= F::first_nan, nan_bits, bits);
  return bits_as<float>(bits | ((code & 0x80u) << 24));
}

/// Bits of |x|, by which NaN is above infinity and infinity above all numbers.
template <typename T>
ATHANOR_BODY std::int32_t magnitude_of(T x) {
  return static_cast<std::int32_t>(bits_of(load(x)) & magnitude_mask);
}

/// Whether a block whose largest magnitude this is holds a NaN or an infinity.
ATHANOR_BODY bool is_nonfinite_block(std::int32_t largest) {
  return static_cast<std::uint32_t>(largest) >= infinity_bits;
}

/// The scale of a finite block.
template <typename F>
ATHANOR_BODY float scale_of(std::int32_t largest) {
  constexpr float smallest = std::numeric_limits<float>::min();
  const float wanted = bits_as<float>(largest) / F::largest;
  return wanted < smallest ? 1.0f : wanted;
}

/// Code of an element of a finite block; *underflow += 1 where a number other than zero becomes zero.
template <typename F, typename T>
ATHANOR_BODY std::uint8_t code_of(T x, float scale, std::int32_t* underflow) {
  const std::uint32_t bits = bits_of(load(x));
  const std::uint32_t magnitude = bits & magnitude_mask;
  const std::uint32_t code = encode<F>(bits_as<float>(magnitude) / scale);
  *underflow += static_cast<std::int32_t>(magnitude != 0u) & static_cast<std::int32_t>(code == 0u);
  return static_cast<std::uint8_t>(code | ((bits >> 24) & 0x80u));
}

/// Where block `index` of all blocks of all rows lies.
struct Fp8Place {
  std::int64_t element;  ///< of the dense array
  std::int64_t code;
  std::int64_t scale;
  std::int64_t count;  ///< elements

  ATHANOR_BODY static Fp8Place of(const Fp8Rows& rows, std::int64_t index) {
    const std::int64_t blocks = fp8_blocks(rows.width);
    const std::int64_t row = index / blocks, block = index - row * blocks, first = block * fp8_block;
    return {row * rows.width + first, row * rows.code_stride + first, row * rows.scale_stride + block,
            rows.width - first < fp8_block ? rows.width - first : fp8_block};
  }
};

// Bodies of a team for each block; there are rows.rows * fp8_blocks(rows.width) of them.

template <typename F, typename T>
struct QuantizeFp8Block {
  static constexpr int lanes = warp_lanes;
  const T* x;
  Fp8Rows rows;
  std::uint8_t* codes;
  float* scales;
  Fp8Counts* counts;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t index) const {
    const Fp8Place at = Fp8Place::of(rows, index);
    const T* in = x + at.element;
    std::uint8_t* out = codes + at.code;
    const auto largest =
        team_maximum<std::int32_t>(team, at.count, 0, [&](std::int64_t i) { return magnitude_of(in[i]); });
    if (is_nonfinite_block(largest)) {
      team.for_each(at.count, [&](std::int64_t i) { out[i] = fp8_nan_code; });
      team.once([&] { scales[at.scale] = bits_as<float>(nan_bits); });
      return team.count(&counts->nonfinite, 1);
    }
    const float scale = scale_of<F>(largest);
    const auto underflow = team_sum<std::int32_t>(team, at.count, [&](std::int64_t i) {
      std::int32_t lost = 0;
      out[i] = code_of<F>(in[i], scale, &lost);
      return lost;
    });
    team.once([&] { scales[at.scale] = scale; });
    if (underflow != 0) {
      team.count(&counts->underflow, underflow);
    }
  }
};

template <typename F, typename T>
struct DequantizeFp8Block {
  static constexpr int lanes = warp_lanes;
  const std::uint8_t* codes;
  const float* scales;
  Fp8Rows rows;
  T* x;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t index) const {
    const Fp8Place at = Fp8Place::of(rows, index);
    const float scale = scales[at.scale];
    team.for_each(at.count, [&](std::int64_t i) {
      x[at.element + i] = store<T>(decode<F>(codes[at.code + i]) * scale);
    });
  }
};

template <typename F>
struct AddFp8Block {
  static constexpr int lanes = warp_lanes;
  const std::uint8_t* codes;
  const float* scales;
  Fp8Rows rows;
  float* sum;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t index) const {
    const Fp8Place at = Fp8Place::of(rows, index);
    const float scale = scales[at.scale];
    team.for_each(at.count,
                  [&](std::int64_t i) { sum[at.element + i] += decode<F>(codes[at.code + i]) * scale; });
  }
};

}  // namespace athanor::kernels::bodies
