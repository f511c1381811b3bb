// The block cache returns what was appended, through block borders, selection of rows and shared blocks.
#include "infer/key_value_cache.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.hpp"

namespace athanor::infer {
namespace {

constexpr std::int64_t heads = 2;
constexpr std::int64_t width = 3;

at::Tensor random_keys(std::int64_t rows, std::int64_t positions) {
  return at::randn({rows, positions, heads, width}, at::kDouble);
}

// What the cache must hold: plain tensors [B, L, G, C] by layer.
class Mirror {
 public:
  Mirror(std::int64_t layers, std::int64_t block_size)
      : cache_(layers, block_size),
        k_(static_cast<std::size_t>(layers)),
        v_(static_cast<std::size_t>(layers)) {}

  void append(std::int64_t rows, std::int64_t positions) {
    for (std::size_t layer = 0; layer < k_.size(); ++layer) {
      const at::Tensor k = random_keys(rows, positions);
      const at::Tensor v = random_keys(rows, positions);
      k_[layer] = k_[layer].defined() ? at::cat({k_[layer], k}, 1) : k;
      v_[layer] = v_[layer].defined() ? at::cat({v_[layer], v}, 1) : v;
      const auto out = cache_.append(static_cast<std::int64_t>(layer), k, v);
      EXPECT_TRUE(at::equal(out.k_BLGC, k_[layer])) << "layer " << layer << " length " << k_[layer].size(1);
      EXPECT_TRUE(at::equal(out.v_BLGC, v_[layer])) << "layer " << layer << " length " << k_[layer].size(1);
    }
  }
  void select(const std::vector<std::int64_t>& parents) {
    cache_.select_rows(parents);
    for (std::size_t layer = 0; layer < k_.size(); ++layer) {
      k_[layer] = k_[layer].index_select(0, at::tensor(parents, at::kLong));
      v_[layer] = v_[layer].index_select(0, at::tensor(parents, at::kLong));
    }
  }
  const KeyValueCache& cache() const { return cache_; }

 private:
  KeyValueCache cache_;
  std::vector<at::Tensor> k_, v_;
};

TEST(KeyValueCache, ReturnsAllPositionsAcrossBlocks) {
  at::manual_seed(1);
  for (std::int64_t block_size : {1, 4, 64}) {
    Mirror mirror(2, block_size);
    for (std::int64_t positions : {5, 1, 1, 1, 9, 1}) {
      mirror.append(3, positions);
    }
    EXPECT_EQ(mirror.cache().length(), 18);
    EXPECT_EQ(mirror.cache().blocks_in_use(), 3 * ((18 + block_size - 1) / block_size));
  }
}

TEST(KeyValueCache, RowsThatContinueOneRowDoNotDisturbEachOther) {
  at::manual_seed(2);
  Mirror mirror(3, 4);
  mirror.append(1, 6);
  mirror.select({0, 0, 0});  // beams: all three share a half-filled block
  EXPECT_EQ(mirror.cache().blocks_in_use(), 2);
  mirror.append(3, 1);
  EXPECT_EQ(mirror.cache().blocks_in_use(), 1 + 3);  // the full block is still shared
  mirror.append(3, 1);
  mirror.select({2, 2, 0});
  mirror.append(3, 3);
  mirror.select({1, 0, 2});
  mirror.append(3, 1);
}

TEST(KeyValueCache, GivesBlocksOfFinishedRowsBackAndReusesThem) {
  at::manual_seed(3);
  Mirror mirror(1, 2);
  mirror.append(4, 4);
  EXPECT_EQ(mirror.cache().blocks_in_use(), 8);
  mirror.select({3});
  EXPECT_EQ(mirror.cache().blocks_in_use(), 2);
  mirror.append(1, 12);
  EXPECT_EQ(mirror.cache().blocks_allocated(), 8);
  mirror.select({});
  EXPECT_EQ(mirror.cache().blocks_in_use(), 0);
}

TEST(KeyValueCache, TakesRowlessBatches) {
  KeyValueCache cache(1);
  const auto out = cache.append(0, random_keys(0, 1), random_keys(0, 1));
  EXPECT_EQ(out.k_BLGC.sizes(), (std::vector<std::int64_t>{0, 1, heads, width}));
}

TEST(KeyValueCache, RefusesAnotherNumberOfRows) {
  KeyValueCache cache(1);
  cache.append(0, random_keys(2, 1), random_keys(2, 1));
  EXPECT_THROW(cache.append(0, random_keys(3, 1), random_keys(3, 1)), base::InternalError);
}

}  // namespace
}  // namespace athanor::infer
