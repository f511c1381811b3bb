// The arithmetic of a reduction with an FP8 wire, apart from the exchange: what one rank sends, and the sum
// of what one rank received.
//
// A record is a block of block_elements codes and its f32 scale (kernels/fp8.hpp).
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "base/precision.hpp"
#include "kernels/fp8.hpp"
#include "optim/bucket.hpp"

namespace athanor::optim::detail {

inline constexpr std::int64_t record_bytes = kernels::fp8_record_bytes(block_elements);
static_assert(block_elements == kernels::fp8_block);

/// Elements of `flat` (f32) [first, first + count) to records [count / block_elements, record_bytes] (uint8).
void quantize_part(const at::Tensor& flat, std::int64_t first, std::int64_t count, base::Fp8Format format,
                   const at::Tensor& records, kernels::Fp8Counts& counts);

/// sum (f32) = the ranks' contributions, added in rank order in f32: `records` [ranks * sum.numel() /
/// block_elements, record_bytes] holds them one rank after another. Each was rounded once, by quantize_part;
/// here only f32 rounds.
void sum_parts(const at::Tensor& records, std::int64_t ranks, base::Fp8Format format, const at::Tensor& sum);

/// The numbers that records stand for, to `flat` (f32) [first, first + count).
void dequantize_part(const at::Tensor& records, base::Fp8Format format, const at::Tensor& flat,
                     std::int64_t first, std::int64_t count);

}  // namespace athanor::optim::detail
