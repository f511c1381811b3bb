// Kernels over flat ranges (AdamW, norms, checks, conversion), exp, and the dispatch over instruction sets.
#include "kernels/adamw.hpp"
#include "kernels/cpu/elements.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/reduce.hpp"

namespace athanor::kernels {
namespace {

using tests::expect_near;
using tests::random_values;
using tests::unit_roundoff;
using tests::widen;

AdamwScalars example_scalars() {
  return {.lr = 1e-2,
          .beta1 = 0.9,
          .beta2 = 0.95,
          .eps = 1e-8,
          .weight_decay = 0.1,
          .bias_correction1 = 0.19,
          .bias_correction2 = 0.0975,
          .gradient_scale = 0.25};
}

template <typename A>
void expect_adamw_matches_reference(std::int64_t n) {
  auto master = random_values<A>(n, 1), m = random_values<A>(n, 2, 0.1), v = random_values<A>(n, 3, 0.01);
  auto grad = random_values<A>(n, 4);
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] = v[i] * v[i];
    if (i % 5 == 0) {
      v[i] = m[i] = grad[i] = 0;  // an element that never had a gradient
    }
  }
  auto master64 = widen(master), m64 = widen(m), v64 = widen(v);
  reference::adamw_update(master64.data(), m64.data(), v64.data(), widen(grad).data(), n, example_scalars());
  std::vector<A> copy(master.size());
  cpu::adamw_update(master.data(), m.data(), v.data(), grad.data(), n, example_scalars(), copy.data());
  expect_near(master, master64, 8 * unit_roundoff<A>(), "master");
  expect_near(m, m64, 8 * unit_roundoff<A>(), "m");
  expect_near(v, v64, 8 * unit_roundoff<A>(), "v");
  EXPECT_EQ(copy, master);
}

TEST(Adamw, MatchesReference) {
  for (const std::int64_t n : {0, 1, 15, 64, 1003}) {
    expect_adamw_matches_reference<float>(n);
    expect_adamw_matches_reference<double>(n);
  }
}

TEST(Adamw, WritesTheComputeCopyRoundedToNearest) {
  const auto master = random_values<float>(77, 5);
  std::vector<c10::BFloat16> bf16(77);
  std::vector<c10::Half> fp16(77);
  cpu::convert_elements(master.data(), 77, bf16.data());
  cpu::convert_elements(master.data(), 77, fp16.data());
  for (std::size_t i = 0; i < 77; ++i) {
    EXPECT_EQ(bf16[i].x, c10::BFloat16(master[i]).x);
    EXPECT_EQ(fp16[i].x, c10::Half(master[i]).x);
  }
  auto updated = master;
  std::vector<float> m(77), v(77), grad = random_values<float>(77, 6);
  cpu::adamw_update(updated.data(), m.data(), v.data(), grad.data(), 77, example_scalars(), bf16.data());
  for (std::size_t i = 0; i < 77; ++i) {
    EXPECT_EQ(bf16[i].x, c10::BFloat16(updated[i]).x);
  }
}

TEST(Adamw, NonFiniteGradientsStayVisible) {
  std::vector<float> master(20, 1.0f), m(20), v(20), grad(20, 1.0f);
  grad[3] = std::numeric_limits<float>::infinity();
  grad[19] = std::numeric_limits<float>::quiet_NaN();
  cpu::adamw_update(master.data(), m.data(), v.data(), grad.data(), 20, example_scalars());
  EXPECT_FALSE(std::isfinite(master[3]));
  EXPECT_FALSE(std::isfinite(master[19]));
  EXPECT_TRUE(std::isfinite(master[4]));
}

template <typename T>
class Reduce : public ::testing::Test {};
TYPED_TEST_SUITE(Reduce, tests::ElementTypes);

TYPED_TEST(Reduce, SumOfSquares) {
  for (const std::int64_t n : {0, 1, 16, 1003}) {
    const auto x = random_values<TypeParam>(n, 7);
    const auto x64 = widen(x);
    const double expected = reference::sum_of_squares(x64.data(), n);
    EXPECT_NEAR(cpu::sum_of_squares(x.data(), n), expected, 1e-14 * expected);
  }
}

TYPED_TEST(Reduce, FindsOneBadElementAnywhere) {
  constexpr std::int64_t n = 37;
  auto x = random_values<TypeParam>(n, 8);
  EXPECT_FALSE(cpu::has_nonfinite(x.data(), n));
  EXPECT_FALSE(cpu::has_nonfinite(x.data(), 0));
  for (std::size_t i = 0; i < n; ++i) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      const TypeParam kept = x[i];
      x[i] = static_cast<TypeParam>(bad);
      EXPECT_TRUE(cpu::has_nonfinite(x.data(), n));
      EXPECT_FALSE(std::isfinite(cpu::sum_of_squares(x.data(), n)));
      x[i] = kept;
    }
  }
}

TEST(FastExp, IsWithinTwoUnitsInTheLastPlace) {
  for (float x = -87.2f; x < 88.2f; x += 0.00917f) {
    const double expected = std::exp(static_cast<double>(x));
    const float nearest = static_cast<float>(expected);
    const double unit = static_cast<double>(std::nextafter(nearest, std::numeric_limits<float>::infinity())) -
                        static_cast<double>(nearest);
    ASSERT_LE(std::abs(static_cast<double>(cpu::fast_exp(x)) - expected), 2.0 * unit) << x;
  }
  EXPECT_EQ(cpu::fast_exp(0.0f), 1.0f);
  EXPECT_EQ(cpu::fast_exp(-1000.0f), 0.0f);
  EXPECT_EQ(cpu::fast_exp(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_TRUE(std::isfinite(cpu::fast_exp(1000.0f)));
  EXPECT_TRUE(std::isnan(cpu::fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

struct ExpBody {
  ATHANOR_KERNEL_INLINE static void run(const float* x, std::int64_t n, float* y) {
    for (std::int64_t i = 0; i < n; ++i) {
      y[i] = cpu::fast_exp(x[i]);
    }
  }
};

TEST(Dispatch, EveryLevelOfThisCpuGivesTheSameWithinRounding) {
  const auto x = random_values<float>(133, 9, 10.0);
  std::vector<double> expected;
  for (const float value : x) {
    expected.push_back(std::exp(static_cast<double>(value)));
  }
  for (const cpu::InstructionSet level :
       {cpu::InstructionSet::baseline, cpu::InstructionSet::x86_64_v3, cpu::InstructionSet::x86_64_v4}) {
    if (level > cpu::instruction_set()) {
      continue;
    }
    std::vector<float> y(x.size());
    cpu::dispatch_to<ExpBody>(level, x.data(), static_cast<std::int64_t>(x.size()), y.data());
    expect_near(y, expected, 3e-7, "exp");
  }
}

}  // namespace
}  // namespace athanor::kernels
