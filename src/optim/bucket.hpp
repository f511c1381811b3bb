// Where parameters lie in one flat storage, how the storage divides into buckets, and who owns which part.
// Arithmetic only: no tensors, no communication.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace athanor::optim {

/// Parameters start, and every rank's part of a bucket ends, at multiples of this many elements: the blocks
/// of the gradient norm and of wire formats with one scale a block never cross a tensor or a shard.
inline constexpr std::int64_t block_elements = 128;

/// The layout of one flat storage of a group of `group_size` ranks.
///
///   parameters | p0 .. pad | p1 ..... pad | p2 . pad | zero padding |
///   buckets    | bucket 0          | bucket 1         | bucket 2    |     each cut into group_size equal
///   parts owner      | r0 | r1 | .. | rg | r0 | r1 | ..     |
///
/// Ownership is per bucket: rank r owns part r of every bucket. So a bucket is contiguous on the wire without
/// a copy and can be reduced as soon as its gradients are there. A rank's shard storage is its parts one
/// after another.
class FlatLayout {
 public:
  /// `numels`: elements of each parameter (0 allowed). A bucket has at most `bucket_elements`, rounded up to
  /// a multiple of group_size * block_elements; a group of one has one bucket.
  FlatLayout(const std::vector<std::int64_t>& numels, std::int64_t group_size, std::int64_t bucket_elements);

  /// Elements [first, first + count) of the flat storage, which are [shard_first, ...) of a shard storage.
  struct Range {
    std::int64_t first = 0;
    std::int64_t count = 0;
    std::int64_t shard_first = 0;
  };
  /// A part of a parameter inside a Range: elements [first, first + count) of parameter `parameter`.
  struct Piece {
    std::size_t parameter = 0;
    std::int64_t first = 0;
    std::int64_t count = 0;
    std::int64_t flat_first = 0;
    std::int64_t shard_first = 0;
  };

  std::int64_t group_size() const { return group_size_; }
  /// Elements with padding; a multiple of group_size * block_elements (0 when all parameters are empty).
  std::int64_t total() const { return total_; }
  /// Elements that one rank owns: total / group_size.
  std::int64_t shard_total() const { return total_ / group_size_; }
  /// First element of a parameter in the flat storage.
  std::int64_t offset(std::size_t parameter) const { return offsets_[parameter]; }
  /// The buckets in order; shard_first is where each owner's part of it lies in its shard storage.
  const std::vector<Range>& buckets() const { return buckets_; }
  /// What `rank` owns: one range a bucket.
  std::vector<Range> owned_by(std::int64_t rank) const;
  /// The whole storage as one range, for state that every holder keeps.
  Range whole() const { return {0, total_, 0}; }
  /// The non-empty parts of parameters inside `range`, in order.
  std::vector<Piece> pieces(const Range& range) const;

 private:
  std::int64_t group_size_ = 1;
  std::int64_t total_ = 0;
  std::vector<std::int64_t> numels_;
  std::vector<std::int64_t> offsets_;
  std::vector<Range> buckets_;
};

}  // namespace athanor::optim
