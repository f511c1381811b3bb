// The parts of a matrix product that need AVX-512: register tiles and packing.
//
// Both element types work on units of 32 bits: an f32, or two bf16 that follow each other along the depth.
#pragma once

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/dispatch.hpp"
#include "kernels/element.hpp"

// GCC 12 takes the intrinsics' deliberately undefined operands for mistakes (GCC PR 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace athanor::kernels::cpu {

#define ATHANOR_F32_TARGET gnu::target("arch=x86-64-v4")
#define ATHANOR_BF16_TARGET gnu::target("arch=x86-64-v4,avx512bf16")

inline constexpr std::int64_t tile_rows = 12;
inline constexpr std::int64_t panel_columns = 32;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Whether rows that far apart compete for a few places in the cache.
constexpr bool rows_alias(std::int64_t stride_bytes) {
  return stride_bytes >= 4096 && stride_bytes % 4096 == 0;
}

/// The left operand as the tiles read it: unit (row, k) lies row * row_bytes + k * unit_bytes behind data.
struct LeftUnits {
  const char* data;
  std::int64_t row_bytes;
  std::int64_t unit_bytes;
};

/// Where a tile goes: `columns` (1 to 32) of each row.
struct TileTarget {
  void* c;
  std::int64_t stride;  ///< elements
  std::int64_t columns;
  bool add;
};

using Tile = void (*)(LeftUnits a, const float* panel, std::int64_t units, TileTarget target);

struct F32 {
  using Element = float;
  static constexpr std::int64_t depth_of_unit = 1;
};
struct Bf16 {
  using Element = c10::BFloat16;
  static constexpr std::int64_t depth_of_unit = 2;
};

/// The first `count` lanes of a vector (none when negative).
ATHANOR_KERNEL_INLINE __mmask16 mask_of(std::int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffffu : count <= 0 ? 0u : (1u << count) - 1u);
}

template <int rows>
[[ATHANOR_F32_TARGET, gnu::always_inline]] inline void store_f32(const __m512 (&sum)[rows][2],
                                                                 const TileTarget& target) {
  const __mmask16 low_mask = mask_of(target.columns);
  const __mmask16 high_mask = mask_of(target.columns - 16);
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    float* out = static_cast<float*>(target.c) + r * target.stride;
    __m512 low = sum[r][0];
    __m512 high = sum[r][1];
    if (target.add) {
      low = _mm512_add_ps(low, _mm512_maskz_loadu_ps(low_mask, out));
      high = _mm512_add_ps(high, _mm512_maskz_loadu_ps(high_mask, out + 16));
    }
    _mm512_mask_storeu_ps(out, low_mask, low);
    _mm512_mask_storeu_ps(out + 16, high_mask, high);
  }
}

template <int rows>
[[ATHANOR_F32_TARGET]] void f32_tile(LeftUnits a, const float* panel, std::int64_t units, TileTarget target) {
  __m512 sum[rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    sum[r][0] = _mm512_setzero_ps();
    sum[r][1] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < units; ++k) {
    const __m512 low = _mm512_loadu_ps(panel + k * panel_columns);
    const __m512 high = _mm512_loadu_ps(panel + k * panel_columns + 16);
    const char* column = a.data + k * a.unit_bytes;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const __m512 left = _mm512_set1_ps(*reinterpret_cast<const float*>(column + r * a.row_bytes));
      sum[r][0] = _mm512_fmadd_ps(left, low, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(left, high, sum[r][1]);
    }
  }
  store_f32<rows>(sum, target);
}

template <int rows, bool to_bf16>
[[ATHANOR_BF16_TARGET]] void bf16_tile(LeftUnits a, const float* panel, std::int64_t units,
                                       TileTarget target) {
  __m512 sum[rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    sum[r][0] = _mm512_setzero_ps();
    sum[r][1] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < units; ++k) {
    const auto low = reinterpret_cast<__m512bh>(_mm512_loadu_ps(panel + k * panel_columns));
    const auto high = reinterpret_cast<__m512bh>(_mm512_loadu_ps(panel + k * panel_columns + 16));
    const char* column = a.data + k * a.unit_bytes;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      float pair = 0.0f;
      std::memcpy(&pair, column + r * a.row_bytes, sizeof(pair));
      const auto left = reinterpret_cast<__m512bh>(_mm512_set1_ps(pair));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], left, low);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], left, high);
    }
  }
  if constexpr (to_bf16) {
    const __mmask16 low_mask = mask_of(target.columns);
    const __mmask16 high_mask = mask_of(target.columns - 16);
    for (int r = 0; r < rows; ++r) {
      auto* out = static_cast<c10::BFloat16*>(target.c) + r * target.stride;
      _mm256_mask_storeu_epi16(out, low_mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum[r][0])));
      _mm256_mask_storeu_epi16(out + 16, high_mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum[r][1])));
    }
  } else {
    store_f32<rows>(sum, target);
  }
}

template <int... index>
constexpr std::array<Tile, sizeof...(index)> f32_tiles(std::integer_sequence<int, index...>) {
  return {&f32_tile<index + 1>...};
}
template <bool to_bf16, int... index>
constexpr std::array<Tile, sizeof...(index)> bf16_tiles(std::integer_sequence<int, index...>) {
  return {&bf16_tile<index + 1, to_bf16>...};
}

/// The tile of `rows` rows for an element type and a result type.
template <typename Type, typename C>
Tile tile_of(std::int64_t rows) {
  constexpr auto sizes = std::make_integer_sequence<int, tile_rows>();
  if constexpr (std::is_same_v<Type, F32>) {
    static constexpr auto tiles = f32_tiles(sizes);
    return tiles[static_cast<std::size_t>(rows - 1)];
  } else {
    static constexpr auto tiles = bf16_tiles<std::is_same_v<C, c10::BFloat16>>(sizes);
    return tiles[static_cast<std::size_t>(rows - 1)];
  }
}

/// out[k * out_stride + line] = unit k of line `line`, for lines whose units follow each other: `lines` (at
/// most 16) lines of `units` (at most 16) units, `line_bytes` apart. Writes whole vectors of 16 lines.
[[ATHANOR_F32_TARGET]] inline void transpose_16(const char* in, std::int64_t line_bytes, std::int64_t lines,
                                                std::int64_t units, float* out, std::int64_t out_stride) {
  const auto mask = static_cast<__mmask16>(units >= 16 ? 0xffffu : (1u << units) - 1u);
  __m512 row[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    row[i] = i < lines ? _mm512_maskz_loadu_ps(mask, in + i * line_bytes) : _mm512_setzero_ps();
  }
  __m512 pair[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
  }
  // quad[4 g + j]: units j, 4 + j, 8 + j, 12 + j of lines 4 g to 4 g + 3.
  __m512 quad[16];
#pragma GCC unroll 4
  for (int g = 0; g < 16; g += 4) {
    const auto a = _mm512_castps_pd(pair[g]), b = _mm512_castps_pd(pair[g + 2]);
    const auto c = _mm512_castps_pd(pair[g + 1]), d = _mm512_castps_pd(pair[g + 3]);
    quad[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    quad[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    quad[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    quad[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
  __m512 column[16];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 low_even = _mm512_shuffle_f32x4(quad[j], quad[4 + j], 0x88);  // units j and 8 + j
    const __m512 low_odd = _mm512_shuffle_f32x4(quad[j], quad[4 + j], 0xdd);   // 4 + j and 12 + j
    const __m512 high_even = _mm512_shuffle_f32x4(quad[8 + j], quad[12 + j], 0x88);
    const __m512 high_odd = _mm512_shuffle_f32x4(quad[8 + j], quad[12 + j], 0xdd);
    column[j] = _mm512_shuffle_f32x4(low_even, high_even, 0x88);
    column[8 + j] = _mm512_shuffle_f32x4(low_even, high_even, 0xdd);
    column[4 + j] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    column[12 + j] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
#pragma GCC unroll 16
  for (int k = 0; k < 16; ++k) {
    if (k < units) {
      _mm512_storeu_ps(out + k * out_stride, column[k]);
    }
  }
}

/// out[k * out_stride + line] for lines that lie beside each other: unit k of f32 is row k of `in`.
[[ATHANOR_F32_TARGET]] inline void interleave(const float* in, std::int64_t stride, std::int64_t lines,
                                              std::int64_t depth, float* out, std::int64_t out_stride) {
  for (std::int64_t k = 0; k < depth; ++k) {
    for (std::int64_t first = 0; first < lines; first += 16) {
      _mm512_storeu_ps(out + k * out_stride + first,
                       _mm512_maskz_loadu_ps(mask_of(lines - first), in + k * stride + first));
    }
  }
}

/// The same for bf16: unit k is rows 2 k and 2 k + 1 (zero beyond the depth).
[[ATHANOR_F32_TARGET]] inline void interleave(const c10::BFloat16* in, std::int64_t stride,
                                              std::int64_t lines, std::int64_t depth, float* out,
                                              std::int64_t out_stride) {
  for (std::int64_t k = 0; k < depth; k += 2) {
    for (std::int64_t first = 0; first < lines; first += 16) {
      const c10::BFloat16* row = in + k * stride + first;
      const __mmask16 mask = mask_of(lines - first);
      const __mmask16 second_mask = k + 1 < depth ? mask : __mmask16(0);
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second_mask, row + stride));
      _mm512_storeu_si512(out + k / 2 * out_stride + first,
                          _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
  }
}

/// Packs `lines` lines of `depth` elements into units: out[k * out_stride + line], padded to whole vectors of
/// lines. Element (line, depth index) is in[line * line_stride + index * depth_stride].
template <typename Type>
void pack(const typename Type::Element* in, std::int64_t line_stride, std::int64_t depth_stride,
          std::int64_t lines, std::int64_t depth, float* out, std::int64_t out_stride) {
  constexpr std::int64_t unit = Type::depth_of_unit;
  using Element = typename Type::Element;
  if (depth_stride != 1) {
    return interleave(in, depth_stride, lines, depth, out, out_stride);
  }
  const std::int64_t whole_units = depth / unit;
  const auto line_bytes = line_stride * static_cast<std::int64_t>(sizeof(Element));
  for (std::int64_t first = 0; first < lines; first += 16) {
    const std::int64_t count = std::min<std::int64_t>(16, lines - first);
    const auto* line = reinterpret_cast<const char*>(in + first * line_stride);
    for (std::int64_t k = 0; k < whole_units; k += 16) {
      transpose_16(line + 4 * k, line_bytes, count, std::min<std::int64_t>(16, whole_units - k),
                   out + k * out_stride + first, out_stride);
    }
    if (whole_units * unit < depth) {  // half a unit
      for (std::int64_t i = 0; i < 16; ++i) {
        Element last[2] = {Element(0), Element(0)};
        if (i < count) {
          last[0] = in[(first + i) * line_stride + depth - 1];
        }
        std::memcpy(out + whole_units * out_stride + first + i, last, sizeof(float));
      }
    }
  }
}

/// `rows` rows of `columns` elements; strides in elements.
template <typename T>
[[ATHANOR_F32_TARGET]] void copy_rows(const T* in, std::int64_t in_stride, std::int64_t rows,
                                      std::int64_t columns, T* out, std::int64_t out_stride) {
  const std::int64_t bytes = columns * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto* from = reinterpret_cast<const char*>(in + row * in_stride);
    auto* to = reinterpret_cast<char*>(out + row * out_stride);
    std::int64_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
      _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
    }
    if (i < bytes) {
      const auto mask = static_cast<__mmask64>((std::uint64_t{1} << (bytes - i)) - 1);
      _mm512_mask_storeu_epi8(to + i, mask, _mm512_maskz_loadu_epi8(mask, from + i));
    }
  }
}

}  // namespace athanor::kernels::cpu

#undef ATHANOR_F32_TARGET
#undef ATHANOR_BF16_TARGET
#pragma GCC diagnostic pop

#endif
