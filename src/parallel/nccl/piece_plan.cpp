#include "parallel/nccl/piece_plan.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

// Piece number `index` of a part, empty behind its end.
void add_piece(std::vector<Piece>& group, Piece::Direction direction, int peer, std::int64_t total,
               std::int64_t index, std::int64_t limit) {
  const std::int64_t first = index * limit;
  if (first < total) {
    group.push_back({direction, peer, first, std::min(limit, total - first)});
  }
}

}  // namespace

std::vector<std::vector<Piece>> plan_pieces(int rank, std::span<const std::int64_t> send_bytes,
                                            std::span<const std::int64_t> receive_bytes,
                                            const PieceLimits& limits) {
  ATHANOR_CHECK(limits.operations >= 2 && limits.bytes >= 1 && send_bytes.size() == receive_bytes.size(),
                "groups of {} operations with pieces of {} bytes for {} and {} parts", limits.operations,
                limits.bytes, send_bytes.size(), receive_bytes.size());
  const int size = static_cast<int>(send_bytes.size());
  const int steps_per_group = limits.operations / 2;
  std::int64_t longest = 0;
  for (int r = 0; r < size; ++r) {
    if (r != rank) {
      longest = std::max(
          {longest, send_bytes[static_cast<std::size_t>(r)], receive_bytes[static_cast<std::size_t>(r)]});
    }
  }
  std::vector<std::vector<Piece>> groups;
  for (std::int64_t index = 0; index * limits.bytes < longest; ++index) {
    for (int first_step = 1; first_step < size; first_step += steps_per_group) {
      std::vector<Piece> group;
      for (int step = first_step; step < std::min(size, first_step + steps_per_group); ++step) {
        const int target = (rank + step) % size;
        const int source = (rank - step + size) % size;
        add_piece(group, Piece::Direction::send, target, send_bytes[static_cast<std::size_t>(target)], index,
                  limits.bytes);
        add_piece(group, Piece::Direction::receive, source, receive_bytes[static_cast<std::size_t>(source)],
                  index, limits.bytes);
      }
      if (!group.empty()) {
        groups.push_back(std::move(group));
      }
    }
  }
  return groups;
}

}  // namespace athanor::parallel
