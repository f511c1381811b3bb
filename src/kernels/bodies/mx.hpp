// Blocks of 32 e4m3 codes with a power of two for each.
#pragma once

#include "kernels/bodies/fp8.hpp"
#include "kernels/mx.hpp"

namespace athanor::kernels::bodies {

inline constexpr std::uint8_t mx_nan_scale = 0xff;

/// The scale's exponent plus 127, from the bits of the block's largest magnitude.
ATHANOR_BODY std::uint8_t mx_scale_of(std::int32_t largest) {
  if (is_nonfinite_block(largest)) {
    return mx_nan_scale;
  }
  // 448 is 1.75 * 2^8: above that mantissa the next power is needed.
  const std::int32_t exponent = largest >> 23, mantissa = largest & 0x7fffff;
  const std::int32_t wanted = exponent - 8 + (mantissa > 0x600000 ? 1 : 0);
  return static_cast<std::uint8_t>(wanted > 0 ? wanted : 0);
}

/// 1 / 2^(scale - 127), exact: its exponent is from -127 to 127, the first of them subnormal.
ATHANOR_BODY float mx_inverse_scale(std::uint8_t scale) {
  const auto exponent = static_cast<std::uint32_t>(254 - scale);
  return bits_as<float>(exponent > 0 ? exponent << 23 : 0x00400000u);
}

/// Where the scale of a block lies: tiles row after row of tiles, in a tile 32 lines of 16 bytes, of which
/// row r of the tile has the r/32-th four in line r mod 32.
ATHANOR_BODY std::int64_t mx_scale_place(std::int64_t row, std::int64_t block, std::int64_t blocks) {
  const std::int64_t tiles = (blocks + mx_tile_blocks - 1) / mx_tile_blocks;
  const std::int64_t tile = row / mx_tile_rows * tiles + block / mx_tile_blocks, in_tile = row % mx_tile_rows;
  return tile * mx_tile_rows * mx_tile_blocks + in_tile % 32 * 16 + in_tile / 32 * 4 + block % mx_tile_blocks;
}

/// One block for each team; there are rows * width / mx_block of them.
template <typename T>
struct QuantizeMxBlock {
  static constexpr int lanes = warp_lanes;
  const T* x;
  std::int64_t width;
  std::uint8_t* codes;
  std::uint8_t* scales;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t index) const {
    const T* in = x + index * mx_block;
    std::uint8_t* out = codes + index * mx_block;
    const auto largest =
        team_maximum<std::int32_t>(team, mx_block, 0, [&](std::int64_t i) { return magnitude_of(in[i]); });
    const std::uint8_t scale = mx_scale_of(largest);
    const float inverse = mx_inverse_scale(scale);
    team.for_each(mx_block, [&](std::int64_t i) {
      const std::uint32_t bits = bits_of(load(in[i]));
      const float magnitude = bits_as<float>(bits & magnitude_mask) * inverse;
      const std::uint32_t code = scale == mx_nan_scale ? fp8_nan_code : encode<E4m3>(magnitude);
      out[i] = static_cast<std::uint8_t>(code | ((bits >> 24) & 0x80u));
    });
    const std::int64_t blocks = width / mx_block, row = index / blocks;
    team.once([&] { scales[mx_scale_place(row, index - row * blocks, blocks)] = scale; });
  }
};

}  // namespace athanor::kernels::bodies
