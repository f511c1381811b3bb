// Rows in the format in which they travel between ranks.
//
// Legend: n rows, D width.
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

#include "base/precision.hpp"
#include "parallel/traffic.hpp"

namespace athanor::moe::detail {

/// True when rows of `type` travel as they are: `full`, and bf16 rows in bf16.
bool travels_as_is(base::WireType wire, at::ScalarType type);

/// Rows [n, D] for the wire: bf16 [n, D], or records of fp8 codes with their scales (kernels/fp8.hpp), uint8
/// [n, record bytes]. Each number is rounded once. What fp8 loses is counted in `traffic`.
at::Tensor pack_rows(const at::Tensor& rows, base::WireType wire, base::Fp8Format format,
                     parallel::TrafficCounters& traffic);

/// Bytes of one packed row of `width` numbers, rows of `type`.
std::int64_t packed_row_bytes(std::int64_t width, base::WireType wire, at::ScalarType type);

/// to[to_row[i]] = the numbers of packed row i; an empty span stands for 0, 1, 2, ...
void unpack_rows(const at::Tensor& packed, base::Fp8Format format, const at::Tensor& to,
                 std::span<const std::int64_t> to_row);

}  // namespace athanor::moe::detail
