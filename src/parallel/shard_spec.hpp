// Which box of a logical tensor a rank holds.
#pragma once

#include <cstdint>
#include <vector>

namespace athanor::parallel {

/// A box of a logical tensor: global shape, and offset and extent in each dimension. May be empty.
struct ShardSpec {
  std::vector<std::int64_t> global_shape;
  std::vector<std::int64_t> offset;
  std::vector<std::int64_t> local_shape;

  /// The whole tensor.
  static ShardSpec whole(std::vector<std::int64_t> shape);
  /// Rows [first, first + count) of dimension `dim`.
  static ShardSpec slice(std::vector<std::int64_t> shape, std::int64_t dim, std::int64_t first,
                         std::int64_t count);

  std::int64_t local_numel() const;
  std::int64_t global_numel() const;
  /// Index in the flattened logical tensor of element `local_index` of the flattened local slice.
  std::int64_t global_index(std::int64_t local_index) const;
  bool operator==(const ShardSpec&) const = default;
};

/// The `index`-th of `parts` nearly equal blocks of [0, total): block size ceil(total/parts), the last ones
/// may be smaller or empty.
struct Block {
  std::int64_t first = 0;
  std::int64_t count = 0;
};
Block block_of(std::int64_t total, std::int64_t parts, std::int64_t index);

}  // namespace athanor::parallel
