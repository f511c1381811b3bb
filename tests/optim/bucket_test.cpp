#include "optim/bucket.hpp"

#include <gtest/gtest.h>

namespace athanor::optim {
namespace {

const std::vector<std::int64_t> odd_sizes = {1, 0, 127, 128, 129, 1000, 0, 3};

TEST(FlatLayout, PlacesParametersOnBlocks) {
  const FlatLayout layout(odd_sizes, 3, 500);
  const std::vector<std::int64_t> expected = {0, 128, 128, 256, 384, 640, 1664, 1664};
  for (std::size_t i = 0; i < odd_sizes.size(); ++i) {
    EXPECT_EQ(layout.offset(i), expected[i]);
  }
  EXPECT_EQ(layout.total(), 1920);  // 1792 rounded up to a multiple of 3 * 128
  EXPECT_EQ(layout.shard_total(), 640);
}

TEST(FlatLayout, BucketsAndShardsEndOnBlocks) {
  for (const std::int64_t group : {1, 2, 3, 4, 7}) {
    for (const std::int64_t bucket : {1, 128, 500, 1000, 1 << 20}) {
      const FlatLayout layout(odd_sizes, group, bucket);
      std::int64_t next = 0;
      std::int64_t shard_next = 0;
      for (const FlatLayout::Range& range : layout.buckets()) {
        EXPECT_EQ(range.first, next);
        EXPECT_EQ(range.shard_first, shard_next);
        EXPECT_GT(range.count, 0);
        EXPECT_EQ(range.count % (group * block_elements), 0);
        EXPECT_LT(range.count, group == 1 ? 2048 : bucket + group * block_elements);
        next += range.count;
        shard_next += range.count / group;
      }
      EXPECT_EQ(next, layout.total());
      EXPECT_EQ(shard_next, layout.shard_total());
    }
  }
  EXPECT_EQ(FlatLayout(odd_sizes, 1, 1).buckets().size(), 1U);
}

TEST(FlatLayout, OwnersCoverEveryElementOnce) {
  for (const std::int64_t group : {1, 2, 3, 4}) {
    for (const std::int64_t bucket : {1, 600, 1 << 20}) {
      const FlatLayout layout(odd_sizes, group, bucket);
      std::vector<std::vector<int>> seen;
      for (const std::int64_t numel : odd_sizes) {
        seen.emplace_back(static_cast<std::size_t>(numel), 0);
      }
      for (std::int64_t rank = 0; rank < group; ++rank) {
        for (const FlatLayout::Range& range : layout.owned_by(rank)) {
          for (const FlatLayout::Piece& piece : layout.pieces(range)) {
            EXPECT_GT(piece.count, 0);
            EXPECT_EQ(piece.flat_first, layout.offset(piece.parameter) + piece.first);
            EXPECT_EQ(piece.flat_first - range.first, piece.shard_first - range.shard_first);
            for (std::int64_t i = 0; i < piece.count; ++i) {
              ++seen[piece.parameter][static_cast<std::size_t>(piece.first + i)];
            }
          }
        }
      }
      for (const auto& parameter : seen) {
        for (const int count : parameter) {
          EXPECT_EQ(count, 1);
        }
      }
    }
  }
}

TEST(FlatLayout, AllEmptyHasNoBuckets) {
  const FlatLayout layout({0, 0}, 4, 100);
  EXPECT_EQ(layout.total(), 0);
  EXPECT_TRUE(layout.buckets().empty());
  EXPECT_TRUE(layout.owned_by(3).empty());
  EXPECT_TRUE(layout.pieces(layout.whole()).empty());
}

}  // namespace
}  // namespace athanor::optim
