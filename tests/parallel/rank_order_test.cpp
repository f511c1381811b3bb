#include "parallel/collectives/rank_order.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/row_units.hpp"

namespace athanor::parallel {
namespace {

std::vector<at::Tensor> random_parts(int num, std::int64_t numel, at::ScalarType type) {
  at::manual_seed(1);
  std::vector<at::Tensor> parts;
  for (int i = 0; i < num; ++i) {
    parts.push_back((at::randn({numel}, at::kDouble) * std::pow(10.0, i % 5)).to(type));
  }
  return parts;
}

TEST(RankOrder, SumsInOrderInTheAccumulationTypeAndRoundsOnce) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    const at::ScalarType accumulation = type == at::kDouble ? at::kDouble : at::kFloat;
    for (const std::int64_t numel : {0, 1, 17, 2048, 5001}) {
      const auto parts = random_parts(7, numel, type);
      at::Tensor expected = parts[0].to(accumulation);
      for (std::size_t i = 1; i < parts.size(); ++i) {
        expected = expected + parts[i].to(accumulation);
      }
      at::Tensor wide = at::empty({numel}, accumulation);
      reduce_in_rank_order(wide, parts, ReduceOp::sum);
      EXPECT_TRUE(at::equal(wide, expected));
      at::Tensor narrow = at::empty({numel}, type);
      reduce_in_rank_order(narrow, parts, ReduceOp::sum);
      EXPECT_TRUE(at::equal(narrow, expected.to(type)));
    }
  }
}

TEST(RankOrder, OutputMayBeOneOfTheParts) {
  auto parts = random_parts(3, 3000, at::kFloat);
  const at::Tensor expected = parts[0] + parts[1] + parts[2];
  at::Tensor output = parts[1];
  reduce_in_rank_order(output, parts, ReduceOp::sum);
  EXPECT_TRUE(at::equal(output, expected));
}

TEST(RankOrder, MaxAndMinPropagateNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<at::Tensor> parts = {at::tensor({1.0f, nan, 3.0f, -1.0f}),
                                         at::tensor({2.0f, 5.0f, nan, -2.0f})};
  at::Tensor max = at::empty({4});
  at::Tensor min = at::empty({4});
  reduce_in_rank_order(max, parts, ReduceOp::max);
  reduce_in_rank_order(min, parts, ReduceOp::min);
  EXPECT_TRUE(at::equal(max.isnan(), at::tensor({0, 1, 1, 0}).to(at::kBool)));
  EXPECT_TRUE(at::equal(min.isnan(), at::tensor({0, 1, 1, 0}).to(at::kBool)));
  EXPECT_EQ(max[0].item<float>(), 2.0f);
  EXPECT_EQ(min[3].item<float>(), -2.0f);
}

TEST(RankOrder, RefusesOtherTypes) {
  at::Tensor integers = at::ones({2}, at::kLong);
  EXPECT_THROW(reduce_in_rank_order(integers, std::vector{integers}, ReduceOp::sum), base::InternalError);
  at::Tensor half = at::ones({2}, at::kHalf);
  EXPECT_THROW(reduce_in_rank_order(half, std::vector{at::ones({2})}, ReduceOp::sum), base::InternalError);
  at::Tensor longer = at::ones({3});
  EXPECT_THROW(reduce_in_rank_order(longer, std::vector{at::ones({2})}, ReduceOp::sum), base::InternalError);
}

TEST(RowUnits, AreRowsWhileTheyFitAnInt) {
  const std::vector<std::int64_t> rows{3, 0, 6};
  EXPECT_EQ(rows_per_unit(rows), 1);
  const RowUnits units = in_units(rows, 1);
  EXPECT_EQ(units.counts, (std::vector<int>{3, 0, 6}));
  EXPECT_EQ(units.offsets, (std::vector<int>{0, 3, 3}));
}

TEST(RowUnits, GrowForManyEqualRows) {
  const std::int64_t large = std::int64_t{3} << 30;
  const std::vector<std::int64_t> rows{large, large, 0, 2 * large};
  EXPECT_EQ(rows_per_unit(rows), large);
  const RowUnits units = in_units(rows, large);
  EXPECT_EQ(units.counts, (std::vector<int>{1, 1, 0, 2}));
  EXPECT_EQ(units.offsets, (std::vector<int>{0, 1, 2, 2}));
}

TEST(RowUnits, RefuseCountsBeyondInt) {
  const std::vector<std::int64_t> rows{(std::int64_t{1} << 31) + 1, std::int64_t{1} << 31};
  EXPECT_THROW(in_units(rows, rows_per_unit(rows)), base::InternalError);
}

TEST(TypeFactors, MultiplyToTheBytes) {
  for (const std::int64_t bytes : {std::int64_t{1}, std::int64_t{1023}, std::int64_t{3} << 32}) {
    const TypeFactors factors = type_factors(bytes);
    EXPECT_EQ(static_cast<std::int64_t>(factors.inner) * factors.outer, bytes);
  }
  EXPECT_THROW(type_factors((std::int64_t{1} << 33) + 1), base::InternalError);
}

}  // namespace
}  // namespace athanor::parallel
