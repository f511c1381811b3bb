// Numbers between the formats of weights files.
#pragma once

#include <cstdint>

#include "checkpoint/tensor_slice.hpp"

namespace athanor::app {

/// Widens (f32, bf16, f16) or narrows (f64, to nearest even) `count` elements of `type` to f32. Returns the
/// index of the first one that is not finite, or -1.
std::int64_t to_f32(const void* from, checkpoint::ElementType type, std::int64_t count, float* to);

/// Rounds `count` elements to `type` (f32, bf16, f16), to nearest even. Returns the index of the first one
/// that is not finite afterwards, or -1.
std::int64_t from_f32(const float* from, std::int64_t count, checkpoint::ElementType type, void* to);

}  // namespace athanor::app
