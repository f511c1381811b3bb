// Initial weights as a pure function of (seed, name, element of the logical tensor).
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

#include "base/philox.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::parallel {

/// Elements that normal_block() makes at a time.
inline constexpr std::int64_t normal_block_size = 64;

/// out[i] = stream.normal(normal_block_size * block + i) to within 1e-14, several times faster than one by
/// one. An element's bits depend on its index alone: always whole, aligned blocks are computed.
void normal_block(std::span<double, normal_block_size> out, std::uint64_t block,
                  const base::PhiloxStream& stream);

/// Sets each element of `slice` (contiguous, of shard.local_shape, any float dtype) to std times the normal
/// number of its index in the flattened logical tensor; drawn in double and rounded once, so every layout
/// gets equal bits.
void fill_normal(at::Tensor& slice, const ShardSpec& shard, double std, const base::PhiloxStream& stream);

}  // namespace athanor::parallel
