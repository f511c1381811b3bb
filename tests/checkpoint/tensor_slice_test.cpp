#include "checkpoint/tensor_slice.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "base/error.hpp"

namespace athanor::checkpoint {
namespace {

using parallel::ShardSpec;

std::int64_t draw(std::mt19937& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

// [first, first + count) of [0, size): all of it, most of it, or anything, even nothing.
parallel::Block random_range(std::mt19937& random, std::int64_t size) {
  const std::int64_t kind = draw(random, 0, 9);
  if (kind < 4) {
    return {0, size};
  }
  const std::int64_t first = draw(random, 0, kind < 8 ? size / 3 : size);
  return {first, draw(random, kind < 8 ? (size - first + 1) / 2 : 0, size - first)};
}

// A random part of a tensor of this shape.
SliceExtent random_extent(std::mt19937& random, const std::vector<std::int64_t>& shape) {
  SliceExtent extent;
  extent.box.global_shape = shape;
  for (const std::int64_t size : shape) {
    const parallel::Block range = random_range(random, size);
    extent.box.offset.push_back(range.first);
    extent.box.local_shape.push_back(range.count);
  }
  const parallel::Block range = random_range(random, extent.box.local_numel());
  extent.first = range.first;
  extent.count = range.count;
  return extent;
}

std::vector<std::int64_t> random_shape(std::mt19937& random) {
  std::vector<std::int64_t> shape(static_cast<std::size_t>(draw(random, 1, 4)));
  for (std::int64_t& size : shape) {
    size = draw(random, 1, 6);
  }
  return shape;
}

// Global indices of a part's elements, in order.
std::vector<std::int64_t> elements(const SliceExtent& extent) {
  std::vector<std::int64_t> result;
  for (std::int64_t i = 0; i < extent.count; ++i) {
    result.push_back(extent.box.global_index(extent.first + i));
  }
  return result;
}

TEST(ElementTypes, NamesAndSizesGoBothWays) {
  const std::map<std::string, std::int64_t> sizes{
      {"f64", 8}, {"f32", 4}, {"bf16", 2}, {"f16", 2}, {"i64", 8}};
  for (const auto& [name, bytes] : sizes) {
    EXPECT_EQ(element_type_name(element_type_from_name(name)), name);
    EXPECT_EQ(element_bytes(element_type_from_name(name)), bytes);
  }
  EXPECT_THROW(element_type_from_name("f8"), base::CheckpointError);
  EXPECT_THROW(element_type_from_name(""), base::CheckpointError);
}

TEST(Decompose, BoxesListThePartsElementsInOrder) {
  std::mt19937 random(1);
  std::int64_t seen = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const SliceExtent extent = random_extent(random, random_shape(random));
    const std::vector<ExtentBox> boxes = decompose(extent);
    EXPECT_LE(boxes.size(), 2 * extent.box.global_shape.size() - 1);
    std::vector<std::int64_t> listed;
    for (const ExtentBox& box : boxes) {
      EXPECT_EQ(box.first, static_cast<std::int64_t>(listed.size()));
      const ShardSpec spec{extent.box.global_shape, box.offset, box.shape};
      EXPECT_EQ(box.count, spec.local_numel());
      for (std::int64_t i = 0; i < box.count; ++i) {
        listed.push_back(spec.global_index(i));
      }
    }
    ASSERT_EQ(listed, elements(extent)) << "trial " << trial;
    seen += static_cast<std::int64_t>(listed.size());
  }
  EXPECT_GT(seen, 30'000);  // most parts are not empty
}

TEST(Decompose, WholeBoxIsOneBox) {
  const auto boxes = decompose(SliceExtent::whole_box(ShardSpec::slice({4, 6, 5}, 1, 2, 3)));
  ASSERT_EQ(boxes.size(), 1u);
  EXPECT_EQ(boxes[0].offset, (std::vector<std::int64_t>{0, 2, 0}));
  EXPECT_EQ(boxes[0].shape, (std::vector<std::int64_t>{4, 3, 5}));
}

TEST(Decompose, RefusesRangesOutsideTheBox) {
  EXPECT_THROW(decompose({ShardSpec::whole({4}), 2, 3}), base::InternalError);
  EXPECT_THROW(decompose({ShardSpec::whole({4}), -1, 3}), base::InternalError);
  EXPECT_THROW(decompose({ShardSpec::whole({4}), 0, -1}), base::InternalError);
}

TEST(OverlapRuns, AreExactlyTheSharedElements) {
  std::mt19937 random(2);
  std::int64_t seen = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const std::vector<std::int64_t> shape = random_shape(random);
    const SliceExtent source = random_extent(random, shape);
    const SliceExtent target = random_extent(random, shape);
    const std::vector<std::int64_t> from = elements(source);
    const std::vector<std::int64_t> to = elements(target);
    std::int64_t shared = 0;
    for (const std::int64_t element : from) {
      shared += std::ranges::find(to, element) != to.end() ? 1 : 0;
    }
    std::int64_t copied = 0;
    std::int64_t source_end = 0;
    for (const CopyRun& run : overlap_runs(source, target)) {
      EXPECT_GE(run.source_first, source_end);
      EXPECT_GT(run.count, 0);
      source_end = run.source_first + run.count;
      copied += run.count;
      for (std::int64_t i = 0; i < run.count; ++i) {
        ASSERT_EQ(from.at(static_cast<std::size_t>(run.source_first + i)),
                  to.at(static_cast<std::size_t>(run.target_first + i)))
            << "trial " << trial;
      }
    }
    ASSERT_EQ(copied, shared) << "trial " << trial;
    seen += shared;
  }
  EXPECT_GT(seen, 8'000);
}

TEST(OverlapRuns, EqualPartsAreOneRun) {
  const SliceExtent columns = SliceExtent::whole_box(ShardSpec::slice({100, 8}, 1, 2, 3));
  const auto runs = overlap_runs(columns, columns);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].count, 300);
  const SliceExtent range{ShardSpec::slice({100, 8}, 1, 2, 3), 17, 200};
  ASSERT_EQ(overlap_runs(range, range).size(), 1u);
  EXPECT_EQ(overlap_runs(range, range)[0].count, 200);
}

TEST(OverlapRuns, RefusesOtherShapes) {
  EXPECT_THROW(overlap_runs(SliceExtent::whole_box(ShardSpec::whole({4})),
                            SliceExtent::whole_box(ShardSpec::whole({5}))),
               base::InternalError);
}

}  // namespace
}  // namespace athanor::checkpoint
