#include "parallel/initial_values.hpp"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

// Consecutive elements of the flattened slice that are consecutive in the logical tensor too.
std::int64_t run_length(const ShardSpec& shard) {
  std::int64_t run = 1;
  for (std::size_t d = shard.local_shape.size(); d-- > 0;) {
    run *= shard.local_shape[d];
    if (shard.local_shape[d] != shard.global_shape[d]) {
      break;
    }
  }
  return run;
}

// out[i] = normal(first + i) * std; elements come in pairs (2j, 2j + 1) that share a Philox block.
template <typename T>
void fill_run(T* out, std::int64_t first, std::int64_t count, double std, const base::PhiloxStream& stream) {
  std::int64_t i = 0;
  if (first % 2 != 0 && count > 0) {
    out[i++] = static_cast<T>(stream.normal(static_cast<std::uint64_t>(first)) * std);
  }
  for (; i + 1 < count; i += 2) {
    const auto pair = stream.normal_pair(static_cast<std::uint64_t>(first + i) / 2);
    out[i] = static_cast<T>(pair[0] * std);
    out[i + 1] = static_cast<T>(pair[1] * std);
  }
  if (i < count) {
    out[i] = static_cast<T>(stream.normal(static_cast<std::uint64_t>(first + i)) * std);
  }
}

template <typename T>
void fill_typed(at::Tensor& slice, const ShardSpec& shard, double std, const base::PhiloxStream& stream) {
  T* out = slice.mutable_data_ptr<T>();
  const std::int64_t run = run_length(shard);
  constexpr std::int64_t elements_per_task = 1 << 15;
  at::parallel_for(0, slice.numel(), elements_per_task, [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t count = std::min(end - begin, run - begin % run);
      fill_run(out + begin, shard.global_index(begin), count, std, stream);
      begin += count;
    }
  });
}

}  // namespace

void fill_normal(at::Tensor& slice, const ShardSpec& shard, double std, const base::PhiloxStream& stream) {
  ATHANOR_CHECK(slice.is_contiguous() && slice.numel() == shard.local_numel(),
                "{} elements for a slice of {}", slice.numel(), shard.local_numel());
  switch (slice.scalar_type()) {
    case at::kFloat:
      return fill_typed<float>(slice, shard, std, stream);
    case at::kDouble:
      return fill_typed<double>(slice, shard, std, stream);
    case at::kBFloat16:
      return fill_typed<at::BFloat16>(slice, shard, std, stream);
    case at::kHalf:
      return fill_typed<at::Half>(slice, shard, std, stream);
    default:
      throw base::InternalError("initial weights of type {} (float types are possible) choose another",
                                c10::toString(slice.scalar_type()));
  }
}

}  // namespace athanor::parallel
