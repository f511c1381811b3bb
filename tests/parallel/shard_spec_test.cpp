#include "parallel/shard_spec.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

TEST(ShardSpec, WholeMapsEveryIndexToItself) {
  const auto spec = ShardSpec::whole({3, 4, 5});
  EXPECT_EQ(spec.local_numel(), 60);
  EXPECT_EQ(spec.global_numel(), 60);
  for (std::int64_t i = 0; i < 60; ++i) {
    EXPECT_EQ(spec.global_index(i), i);
  }
}

TEST(ShardSpec, SliceIndicesAreThoseOfTheLogicalTensor) {
  const std::vector<std::int64_t> shape{4, 6, 5};
  for (std::int64_t dim = 0; dim < 3; ++dim) {
    const auto spec = ShardSpec::slice(shape, dim, 1, 3);
    std::int64_t local = 0;
    for (std::int64_t a = spec.offset[0]; a < spec.offset[0] + spec.local_shape[0]; ++a) {
      for (std::int64_t b = spec.offset[1]; b < spec.offset[1] + spec.local_shape[1]; ++b) {
        for (std::int64_t c = spec.offset[2]; c < spec.offset[2] + spec.local_shape[2]; ++c, ++local) {
          EXPECT_EQ(spec.global_index(local), (a * 6 + b) * 5 + c);
        }
      }
    }
    EXPECT_EQ(local, spec.local_numel());
  }
}

TEST(ShardSpec, MayBeEmptyOrAScalar) {
  EXPECT_EQ(ShardSpec::slice({7, 3}, 0, 7, 0).local_numel(), 0);
  const auto scalar = ShardSpec::whole({});
  EXPECT_EQ(scalar.local_numel(), 1);
  EXPECT_EQ(scalar.global_index(0), 0);
}

TEST(ShardSpec, RefusesASliceOutsideTheTensor) {
  EXPECT_THROW(ShardSpec::slice({4, 4}, 2, 0, 1), base::InternalError);
  EXPECT_THROW(ShardSpec::slice({4, 4}, 0, 3, 2), base::InternalError);
  EXPECT_THROW(ShardSpec::slice({4, 4}, 0, -1, 2), base::InternalError);
}

TEST(Block, CoversTheRangeOnceForAnyNumberOfParts) {
  for (std::int64_t total = 0; total <= 40; ++total) {
    for (std::int64_t parts = 1; parts <= 12; ++parts) {
      std::int64_t next = 0;
      for (std::int64_t i = 0; i < parts; ++i) {
        const Block block = block_of(total, parts, i);
        EXPECT_EQ(block.first, next);
        EXPECT_GE(block.count, 0);
        EXPECT_LE(block.count, (total + parts - 1) / parts);
        next += block.count;
      }
      EXPECT_EQ(next, total);
    }
  }
}

TEST(Block, RefusesAnIndexOutsideTheParts) {
  EXPECT_THROW(block_of(10, 2, 2), base::InternalError);
  EXPECT_THROW(block_of(10, 0, 0), base::InternalError);
}

}  // namespace
}  // namespace athanor::parallel
