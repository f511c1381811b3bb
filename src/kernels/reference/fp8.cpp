#include "kernels/fp8.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace athanor::kernels::reference {
namespace {

struct Format {
  int mantissa_bits;
  int bias;
  std::uint8_t largest;  // code of the largest finite number
};

Format describe(base::Fp8Format format) {
  return format == base::Fp8Format::e4m3 ? Format{3, 7, 0x7e} : Format{2, 15, 0x7b};
}

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// Scale of a block of `count` numbers.
float scale_of(const float* x, std::int64_t count, base::Fp8Format format) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) {
      return nan;
    }
    largest = std::max(largest, std::abs(x[i]));
  }
  const float scale = largest / decode_fp8(describe(format).largest, format);
  return scale < std::numeric_limits<float>::min() ? 1.0f : scale;
}

}  // namespace

float decode_fp8(std::uint8_t code, base::Fp8Format format) {
  const auto [mantissa_bits, bias, largest] = describe(format);
  const int magnitude = code & 0x7f;
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  if (magnitude > largest) {
    const bool is_infinity = format == base::Fp8Format::e5m2 && magnitude == 0x7c;
    return is_infinity ? sign * std::numeric_limits<float>::infinity() : nan;
  }
  const int exponent = magnitude >> mantissa_bits;
  const int mantissa = magnitude - (exponent << mantissa_bits);
  const int implicit = exponent == 0 ? 0 : 1 << mantissa_bits;
  return sign *
         static_cast<float>(std::ldexp(mantissa + implicit, std::max(exponent, 1) - bias - mantissa_bits));
}

std::uint8_t encode_fp8(float x, base::Fp8Format format) {
  if (std::isnan(x)) {
    return 0x7f;
  }
  const auto distance = [&](int code) {
    return std::abs(static_cast<double>(std::abs(x)) -
                    static_cast<double>(decode_fp8(static_cast<std::uint8_t>(code), format)));
  };
  int best = 0;
  for (int code = 1; code <= describe(format).largest; ++code) {
    const bool is_nearer = distance(code) < distance(best);
    const bool is_even_tie = distance(code) == distance(best) && code % 2 == 0;
    best = is_nearer || is_even_tie ? code : best;
  }
  return static_cast<std::uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

void quantize_fp8_blocks(const float* x, const Fp8Rows& rows, base::Fp8Format format, std::uint8_t* codes,
                         float* scales, Fp8Counts& counts) {
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    for (std::int64_t block = 0; block < fp8_blocks(rows.width); ++block) {
      const std::int64_t first = block * fp8_block;
      const std::int64_t count = std::min(fp8_block, rows.width - first);
      const float* in = x + row * rows.width + first;
      const float scale = scale_of(in, count, format);
      scales[row * rows.scale_stride + block] = scale;
      counts.nonfinite += std::isnan(scale) ? 1 : 0;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::uint8_t code = encode_fp8(in[i] / scale, format);
        codes[row * rows.code_stride + first + i] = code;
        counts.underflow += in[i] != 0.0f && (code & 0x7f) == 0 ? 1 : 0;
      }
    }
  }
}

void dequantize_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                           base::Fp8Format format, float* x) {
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    for (std::int64_t i = 0; i < rows.width; ++i) {
      x[row * rows.width + i] = decode_fp8(codes[row * rows.code_stride + i], format) *
                                scales[row * rows.scale_stride + i / fp8_block];
    }
  }
}

void add_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                    base::Fp8Format format, float* sum) {
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    for (std::int64_t i = 0; i < rows.width; ++i) {
      sum[row * rows.width + i] += decode_fp8(codes[row * rows.code_stride + i], format) *
                                   scales[row * rows.scale_stride + i / fp8_block];
    }
  }
}

}  // namespace athanor::kernels::reference
