// Block-scaled FP8: rows of 8-bit codes with one f32 scale for every 128 of them.
//
// The scale of a block is its largest |x| over the format's largest number (448 for e4m3, 57344 for e5m2),
// and the code of x is x / scale rounded to nearest, ties to even. So nothing saturates, and what one block
// holds does not lower the resolution of another. A block with a NaN or an infinity has a NaN scale and reads
// back as NaN throughout. A block whose scale would be below the smallest normal f32 has scale 1: zeros stay
// zeros, and what else is in it becomes zero and is counted.
#pragma once

#include <cstdint>

#include "base/precision.hpp"
#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

/// Elements of a row that share a scale; the last block of a row may be shorter.
inline constexpr std::int64_t fp8_block = 128;

constexpr std::int64_t fp8_blocks(std::int64_t width) {
  return (width + fp8_block - 1) / fp8_block;
}
/// Where the scales begin in a record: behind the codes, aligned.
constexpr std::int64_t fp8_scale_offset(std::int64_t width) {
  return (width + 3) / 4 * 4;
}
/// Bytes of a record: one row's codes and then its scales, as it travels.
constexpr std::int64_t fp8_record_bytes(std::int64_t width) {
  return fp8_scale_offset(width) + 4 * fp8_blocks(width);
}

/// How many rows there are and where they lie.
struct Fp8Rows {
  std::int64_t rows = 0;
  std::int64_t width = 0;
  std::int64_t code_stride = 0;   ///< bytes from one row's codes to the next
  std::int64_t scale_stride = 0;  ///< floats from one row's scales to the next

  /// Codes [rows, width] and scales [rows, fp8_blocks(width)] in arrays of their own.
  static constexpr Fp8Rows apart(std::int64_t rows, std::int64_t width) {
    return {rows, width, width, fp8_blocks(width)};
  }
  /// Records one after another.
  static constexpr Fp8Rows in_records(std::int64_t rows, std::int64_t width) {
    return {rows, width, fp8_record_bytes(width), fp8_record_bytes(width) / 4};
  }
};

/// What the rounding lost.
struct Fp8Counts {
  std::int64_t underflow = 0;  ///< elements other than zero that became zero
  std::int64_t nonfinite = 0;  ///< blocks with a NaN or an infinity
};

namespace cpu {

/// x [rows, width], f32, bf16 or fp16, to codes and scales; adds to `counts`. Same bits at every instruction
/// set.
template <typename T>
void quantize_fp8_blocks(const T* x, const Fp8Rows& rows, base::Fp8Format format, std::uint8_t* codes,
                         float* scales, Fp8Counts& counts);
/// The inverse, to f32, bf16 or fp16: code * scale rounded once.
template <typename T>
void dequantize_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                           base::Fp8Format format, T* x);
/// sum [rows, width] += code * scale, in f32.
void add_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                    base::Fp8Format format, float* sum);

}  // namespace cpu

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
// The same bits as `cpu`.
namespace cuda {

/// *counts is added to.
template <typename T>
void quantize_fp8_blocks(const T* x, const Fp8Rows& rows, base::Fp8Format format, std::uint8_t* codes,
                         float* scales, Fp8Counts* counts, device::StreamHandle stream);
template <typename T>
void dequantize_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                           base::Fp8Format format, T* x, device::StreamHandle stream);
void add_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                    base::Fp8Format format, float* sum, device::StreamHandle stream);

}  // namespace cuda

namespace reference {

/// The number that a code stands for.
float decode_fp8(std::uint8_t code, base::Fp8Format format);
/// The code of the number nearest to `x`, ties to even codes, 0x7f for NaN; |x| up to the format's largest.
std::uint8_t encode_fp8(float x, base::Fp8Format format);

void quantize_fp8_blocks(const float* x, const Fp8Rows& rows, base::Fp8Format format, std::uint8_t* codes,
                         float* scales, Fp8Counts& counts);
void dequantize_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                           base::Fp8Format format, float* x);
void add_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                    base::Fp8Format format, float* sum);

}  // namespace reference

}  // namespace athanor::kernels
