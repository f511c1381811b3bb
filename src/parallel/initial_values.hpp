// Initial weights as a pure function of (seed, name, element of the logical tensor).
#pragma once

#include <ATen/core/Tensor.h>

#include "base/philox.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::parallel {

/// Sets each element of `slice` (contiguous, of shard.local_shape, any float dtype) to stream.normal(i) * std, where i
/// is its index in the flattened logical tensor; drawn in double and rounded once, so every layout gets equal bits.
void fill_normal(at::Tensor& slice, const ShardSpec& shard, double std, const base::PhiloxStream& stream);

}  // namespace athanor::parallel
