#include "parallel/shard_spec.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

std::int64_t product(const std::vector<std::int64_t>& extents) {
  std::int64_t result = 1;
  for (const std::int64_t extent : extents) {
    result *= extent;
  }
  return result;
}

}  // namespace

ShardSpec ShardSpec::whole(std::vector<std::int64_t> shape) {
  std::vector<std::int64_t> offset(shape.size(), 0);
  return {shape, std::move(offset), shape};
}

ShardSpec ShardSpec::slice(std::vector<std::int64_t> shape, std::int64_t dim, std::int64_t first,
                           std::int64_t count) {
  ShardSpec spec = whole(std::move(shape));
  ATHANOR_CHECK(dim >= 0 && dim < static_cast<std::int64_t>(spec.global_shape.size()),
                "a slice along dimension {} of a tensor of {} dimensions", dim, spec.global_shape.size());
  const auto d = static_cast<std::size_t>(dim);
  ATHANOR_CHECK(first >= 0 && count >= 0 && first + count <= spec.global_shape[d],
                "a slice [{}, {}) of a dimension of {}", first, first + count, spec.global_shape[d]);
  spec.offset[d] = first;
  spec.local_shape[d] = count;
  return spec;
}

std::int64_t ShardSpec::local_numel() const {
  return product(local_shape);
}

std::int64_t ShardSpec::global_numel() const {
  return product(global_shape);
}

std::int64_t ShardSpec::global_index(std::int64_t local_index) const {
  std::int64_t index = 0;
  std::int64_t stride = 1;
  for (std::size_t d = global_shape.size(); d-- > 0;) {
    index += (offset[d] + local_index % local_shape[d]) * stride;
    local_index /= local_shape[d];
    stride *= global_shape[d];
  }
  return index;
}

Block block_of(std::int64_t total, std::int64_t parts, std::int64_t index) {
  ATHANOR_CHECK(total >= 0 && parts > 0 && index >= 0 && index < parts, "block {} of {} parts of {}", index,
                parts, total);
  const std::int64_t size = (total + parts - 1) / parts;
  const std::int64_t first = std::min(index * size, total);
  return {first, std::min(size, total - first)};
}

}  // namespace athanor::parallel
