// Microscaling FP8 (OCP MX): rows of e4m3 codes with one power of two for every 32 of them, which GPUs of
// compute capability 10 multiply. For products on the device alone: what travels or is stored has blocks of
// 128 (fp8.hpp).
//
// The scale of a block is the smallest power of two, from 2^-127 on, by which its largest |x| is at most 448;
// a code is x / scale rounded to nearest, ties to even. A block with a NaN or an infinity has a NaN scale.
// Zeros have scale 2^-127.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

/// Elements of a row that share a scale; a row's width is a multiple of it.
inline constexpr std::int64_t mx_block = 32;
/// Scales lie in tiles of this many rows and blocks, as the tensor cores read them.
inline constexpr std::int64_t mx_tile_rows = 128;
inline constexpr std::int64_t mx_tile_blocks = 4;

/// Bytes of the scales of [rows, width], whole tiles.
constexpr std::int64_t mx_scale_bytes(std::int64_t rows, std::int64_t width) {
  const std::int64_t row_tiles = (rows + mx_tile_rows - 1) / mx_tile_rows;
  const std::int64_t block_tiles = (width / mx_block + mx_tile_blocks - 1) / mx_tile_blocks;
  return row_tiles * block_tiles * mx_tile_rows * mx_tile_blocks;
}

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {

/// x [rows, width], f32, bf16 or fp16, to codes [rows, width] and scales of mx_scale_bytes(rows, width);
/// scales of rows and blocks that only fill a tile are not written.
template <typename T>
void quantize_mx_blocks(const T* x, std::int64_t rows, std::int64_t width, std::uint8_t* codes,
                        std::uint8_t* scales, device::StreamHandle stream);

}  // namespace cuda

}  // namespace athanor::kernels
