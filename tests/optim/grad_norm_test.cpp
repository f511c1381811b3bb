#include "optim/grad_norm.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "optim/bucket.hpp"

namespace athanor::optim {
namespace {

TEST(SquareSum, IsExactInAnyOrderOverTheWholeRangeOfDoubles) {
  std::mt19937_64 generator(7);
  std::vector<double> values;
  for (int i = 0; i < 2000; ++i) {
    const int exponent = static_cast<int>(generator() % 2000) - 1074;
    values.push_back(std::ldexp(static_cast<double>(generator() >> 11), exponent - 53));
  }
  values.push_back(std::numeric_limits<double>::denorm_min());
  values.push_back(0.0);
  SquareSum forward;
  for (const double value : values) {
    forward.add_value(value);
  }
  std::shuffle(values.begin(), values.end(), generator);
  SquareSum shuffled;
  for (const double value : values) {
    shuffled.add_value(value);
  }
  EXPECT_EQ(forward.value(), shuffled.value());
  std::sort(values.begin(), values.end());
  double plain = 0.0;
  for (const double value : values) {
    plain += value;
  }
  EXPECT_NEAR(forward.value() / plain, 1.0, 1e-12);
}

TEST(SquareSum, KeepsWhatPlainAdditionLoses) {
  SquareSum sum;
  sum.add_value(1.0);
  for (int i = 0; i < 1 << 12; ++i) {
    sum.add_value(std::ldexp(1.0, -60));
  }
  EXPECT_EQ(sum.value(), 1.0 + std::ldexp(1.0, -48));
}

TEST(SquareSum, HoldsTheExtremes) {
  const auto of = [](double value) {
    SquareSum sum;
    sum.add_value(value);
    return sum.value();
  };
  for (const double value :
       {0.0, std::numeric_limits<double>::denorm_min(), std::numeric_limits<double>::min(), 1.0, 1.0 / 3.0,
        1e300, std::numeric_limits<double>::max()}) {
    EXPECT_EQ(of(value), value);
  }
}

TEST(SquareSum, AddsTensorsByBlocks) {
  at::manual_seed(1);
  for (const auto type : {at::kFloat, at::kDouble}) {
    const at::Tensor x = at::randn({5 * block_elements}, type);
    SquareSum whole;
    whole.add(x);
    SquareSum parts;
    parts.add(x.narrow(0, 3 * block_elements, 2 * block_elements));
    parts.add(x.narrow(0, 0, 3 * block_elements));
    EXPECT_EQ(whole.value(), parts.value());
    const double expected = x.to(at::kDouble).square().sum().item<double>();
    EXPECT_NEAR(whole.value(), expected, 1e-13 * expected);
  }
}

TEST(SquareSum, OfNothingIsZero) {
  SquareSum sum;
  sum.add(at::empty({0}, at::kFloat));
  EXPECT_EQ(sum.value(), 0.0);
}

TEST(SquareSum, NonFiniteStays) {
  for (const double bad : {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN()}) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      at::Tensor x = at::ones({2 * block_elements}, type);
      x[131] = bad;
      SquareSum sum;
      sum.add(x);
      sum.add(at::ones({block_elements}, type));
      EXPECT_TRUE(std::isnan(sum.value()));
    }
  }
}

TEST(SquareSum, LargestFloatsStayFinite) {
  SquareSum sum;
  sum.add(at::full({block_elements}, std::numeric_limits<float>::max(), at::kFloat));
  EXPECT_TRUE(std::isfinite(sum.value()));
}

TEST(ClipCoefficient, MatchesTorch) {
  EXPECT_EQ(clip_coefficient(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_coefficient(4.0, 1.0), 1.0 / (4.0 + 1e-6));
  EXPECT_EQ(clip_coefficient(0.0, 1.0), 1.0);
  EXPECT_EQ(clip_coefficient(1e9, 0.0), 1.0);
}

}  // namespace
}  // namespace athanor::optim
