// The groups of an exchange: complete, within the limits, and without a circle of waiting ranks.
#include "parallel/nccl/piece_plan.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace athanor::parallel {
namespace {

using Groups = std::vector<std::vector<Piece>>;

// What every rank sends to every other, odd and often nothing.
std::vector<std::vector<std::int64_t>> some_sizes(int ranks, int seed) {
  std::vector<std::vector<std::int64_t>> sizes(static_cast<std::size_t>(ranks));
  std::uint32_t state = 77u + static_cast<std::uint32_t>(seed);
  for (auto& row : sizes) {
    for (int r = 0; r < ranks; ++r) {
      state = state * 1664525u + 1013904223u;
      row.push_back(state % 3 == 0 ? 0 : static_cast<std::int64_t>((state >> 8) % 57));
    }
  }
  return sizes;
}

std::vector<Groups> plans_of(const std::vector<std::vector<std::int64_t>>& sizes, const PieceLimits& limits) {
  std::vector<Groups> plans;
  for (std::size_t rank = 0; rank < sizes.size(); ++rank) {
    std::vector<std::int64_t> receive;
    for (const auto& row : sizes) {
      receive.push_back(row[rank]);
    }
    plans.push_back(plan_pieces(static_cast<int>(rank), sizes[rank], receive, limits));
  }
  return plans;
}

// A group ends when all its pieces have their counterparts in groups that are open; then its rank opens the
// next.
bool all_groups_end(const std::vector<Groups>& plans) {
  std::vector<std::size_t> open(plans.size(), 0);
  const auto has_counterpart = [&](std::size_t rank, const Piece& piece) {
    const auto peer = static_cast<std::size_t>(piece.peer);
    if (open[peer] > plans[peer].size()) {
      return false;
    }
    // Pieces of earlier groups of the peer have met this one already or never will: look at what is open or
    // over.
    std::size_t found = 0;
    for (std::size_t g = 0; g <= open[peer] && g < plans[peer].size(); ++g) {
      for (const Piece& other : plans[peer][g]) {
        found += other.peer == static_cast<int>(rank) && other.direction != piece.direction &&
                 other.first == piece.first && other.bytes == piece.bytes;
      }
    }
    return found == 1;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t rank = 0; rank < plans.size(); ++rank) {
      if (open[rank] < plans[rank].size()) {
        bool ends = true;
        for (const Piece& piece : plans[rank][open[rank]]) {
          ends = ends && has_counterpart(rank, piece);
        }
        if (ends) {
          ++open[rank];
          moved = true;
        }
      }
    }
  }
  for (std::size_t rank = 0; rank < plans.size(); ++rank) {
    if (open[rank] != plans[rank].size()) {
      return false;
    }
  }
  return true;
}

TEST(PiecePlan, EveryByteGoesOnceWithinTheLimits) {
  for (const int ranks : {1, 2, 3, 5, 8, 13}) {
    for (const PieceLimits limits :
         {PieceLimits{2, 1}, PieceLimits{3, 7}, PieceLimits{6, 20}, PieceLimits{1024, 100}}) {
      const auto sizes = some_sizes(ranks, limits.operations);
      const std::vector<Groups> plans = plans_of(sizes, limits);
      for (std::size_t rank = 0; rank < plans.size(); ++rank) {
        std::map<std::pair<bool, int>, std::int64_t> next;
        for (const auto& group : plans[rank]) {
          ASSERT_FALSE(group.empty());
          ASSERT_LE(group.size(), static_cast<std::size_t>(limits.operations));
          for (const Piece& piece : group) {
            ASSERT_NE(piece.peer, static_cast<int>(rank));
            ASSERT_TRUE(piece.bytes > 0 && piece.bytes <= limits.bytes);
            auto& at = next[{piece.direction == Piece::Direction::send, piece.peer}];
            ASSERT_EQ(piece.first, at);
            at += piece.bytes;
          }
        }
        for (std::size_t peer = 0; peer < plans.size(); ++peer) {
          if (peer != rank) {
            EXPECT_EQ((next[{true, static_cast<int>(peer)}]), sizes[rank][peer]);
            EXPECT_EQ((next[{false, static_cast<int>(peer)}]), sizes[peer][rank]);
          }
        }
      }
    }
  }
}

TEST(PiecePlan, NoCircleOfWaitingRanks) {
  for (const int ranks : {2, 3, 4, 7, 12}) {
    for (const PieceLimits limits :
         {PieceLimits{2, 1}, PieceLimits{2, 9}, PieceLimits{4, 5}, PieceLimits{7, 30}}) {
      EXPECT_TRUE(all_groups_end(plans_of(some_sizes(ranks, 3), limits)))
          << ranks << " ranks, groups of " << limits.operations << ", pieces of " << limits.bytes;
    }
  }
}

// The check above can fail: groups cut wherever a rank's own operations fill them wait in a circle.
TEST(PiecePlan, GroupsCutByEachRanksOwnCountWouldWaitInACircle) {
  const auto send = [](int peer) { return Piece{Piece::Direction::send, peer, 0, 1}; };
  const auto receive = [](int peer) { return Piece{Piece::Direction::receive, peer, 0, 1}; };
  const std::vector<Groups> plans = {
      {{send(1)}, {receive(2)}}, {{send(2)}, {receive(0)}}, {{send(0)}, {receive(1)}}};
  EXPECT_FALSE(all_groups_end(plans));
}

TEST(PiecePlan, LimitsThatCannotBeAreRefused) {
  const std::vector<std::int64_t> sizes = {1, 1};
  EXPECT_ANY_THROW(plan_pieces(0, sizes, sizes, {1, 1}));
  EXPECT_ANY_THROW(plan_pieces(0, sizes, sizes, {2, 0}));
}

}  // namespace
}  // namespace athanor::parallel
