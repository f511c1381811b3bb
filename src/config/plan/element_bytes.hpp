// Bytes of numbers, in memory and as they travel.
#pragma once

#include <cstdint>

#include "base/precision.hpp"

namespace athanor::config {

/// Of one element of the compute type.
std::int64_t compute_bytes(base::ComputeType type);
/// Of its accumulation type.
std::int64_t accumulation_bytes(base::ComputeType type);

/// Scales of `width` numbers in FP8.
std::int64_t fp8_blocks(std::int64_t width);

/// Of a row of `width` between token and expert.
std::int64_t wire_row_bytes(std::int64_t width, base::WireType wire, base::ComputeType compute);
/// Of `elements` gradients (whole blocks) on their way to the owner of their sum.
std::int64_t wire_gradient_bytes(std::int64_t elements, base::WireType wire, base::ComputeType compute);

}  // namespace athanor::config
