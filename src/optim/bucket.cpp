#include "optim/bucket.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace athanor::optim {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

FlatLayout::FlatLayout(const std::vector<std::int64_t>& numels, std::int64_t group_size,
                       std::int64_t bucket_elements)
    : group_size_(group_size), numels_(numels) {
  ATHANOR_CHECK(group_size >= 1 && bucket_elements >= 1, "group of {}, buckets of {}", group_size,
                bucket_elements);
  offsets_.reserve(numels.size());
  std::int64_t next = 0;
  for (const std::int64_t numel : numels) {
    offsets_.push_back(next);
    next += round_up(numel, block_elements);
  }
  const std::int64_t unit = group_size * block_elements;
  total_ = round_up(next, unit);
  const std::int64_t bucket = group_size == 1 ? std::max(total_, unit) : round_up(bucket_elements, unit);
  for (std::int64_t first = 0; first < total_; first += bucket) {
    buckets_.push_back({first, std::min(bucket, total_ - first), first / group_size});
  }
}

std::vector<FlatLayout::Range> FlatLayout::owned_by(std::int64_t rank) const {
  ATHANOR_CHECK(rank >= 0 && rank < group_size_, "rank {} of {}", rank, group_size_);
  std::vector<Range> ranges;
  ranges.reserve(buckets_.size());
  for (const Range& bucket : buckets_) {
    const std::int64_t part = bucket.count / group_size_;
    ranges.push_back({bucket.first + rank * part, part, bucket.shard_first});
  }
  return ranges;
}

std::vector<FlatLayout::Piece> FlatLayout::pieces(const Range& range) const {
  std::vector<Piece> result;
  for (std::size_t i = 0; i < numels_.size(); ++i) {
    const std::int64_t first = std::max(offsets_[i], range.first);
    const std::int64_t end = std::min(offsets_[i] + numels_[i], range.first + range.count);
    if (first < end) {
      result.push_back(
          {i, first - offsets_[i], end - first, first, range.shard_first + (first - range.first)});
    }
  }
  return result;
}

}  // namespace athanor::optim
