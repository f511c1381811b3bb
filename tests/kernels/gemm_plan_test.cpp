// The column-major products that cuBLAS is asked for are the grouped products: carried out on the host by the
// plan.
#include "kernels/cuda/gemm_plan.hpp"

#include "kernels/bodies/addresses.hpp"
#include "kernels/bodies/team.hpp"
#include "kernels/kernel_test.hpp"

namespace athanor::kernels::cuda {
namespace {

using tests::random_values;

/// What cuBLAS does with a plan.
void carry_out(const GroupedPlan& plan, const std::vector<double>& a, const std::vector<double>& b,
               double beta, std::vector<double>& c) {
  const auto at = [](const std::vector<double>& x, std::int64_t offset, int ld, bool transpose, int row,
                     int column) {
    const std::int64_t i = transpose ? std::int64_t{column} + std::int64_t{row} * ld
                                     : std::int64_t{row} + std::int64_t{column} * ld;
    return x.at(static_cast<std::size_t>(offset + i));
  };
  for (const ColumnMajorProduct& p : plan.products) {
    for (int column = 0; column < p.n; ++column) {
      for (int row = 0; row < p.m; ++row) {
        double sum = 0.0;
        for (int k = 0; k < p.k; ++k) {
          sum += at(a, p.a_offset, p.lda, plan.transpose_a, row, k) *
                 at(b, p.b_offset, p.ldb, plan.transpose_b, k, column);
        }
        double& out = c.at(static_cast<std::size_t>(p.c_offset + row + std::int64_t{column} * p.ldc));
        out = sum + beta * out;
      }
    }
  }
}

class GemmPlan : public ::testing::Test {
 protected:
  static constexpr std::int64_t in = 5, out = 3;
  const std::vector<std::int64_t> rows{2, 0, 4, 1};
  const GroupedShape shape{in, out, rows};
  const std::vector<double> x = random_values<double>(7 * in, 1), dy = random_values<double>(7 * out, 2),
                            w = random_values<double>(4 * in * out, 3);

  /// use(group, row) for every row of every group.
  template <typename Use>
  void for_each_row(const Use& use) const {
    std::size_t row = 0;
    for (std::size_t g = 0; g < rows.size(); ++g) {
      for (std::int64_t i = 0; i < rows[g]; ++i) {
        use(g, row++);
      }
    }
  }
};

TEST_F(GemmPlan, Linear) {
  std::vector<double> y(7 * out), expected(7 * out);
  carry_out(plan_linear(shape), w, x, 0.0, y);
  for_each_row([&](std::size_t g, std::size_t r) {
    for (std::size_t f = 0; f < out; ++f) {
      for (std::size_t d = 0; d < in; ++d) {
        expected[r * out + f] += x[r * in + d] * w[(g * out + f) * in + d];
      }
    }
  });
  tests::expect_near(y, expected, 1e-14, "y");
}

TEST_F(GemmPlan, DataGradient) {
  std::vector<double> dx(7 * in), expected(7 * in);
  carry_out(plan_data_gradient(shape), w, dy, 0.0, dx);
  for_each_row([&](std::size_t g, std::size_t r) {
    for (std::size_t f = 0; f < out; ++f) {
      for (std::size_t d = 0; d < in; ++d) {
        expected[r * in + d] += dy[r * out + f] * w[(g * out + f) * in + d];
      }
    }
  });
  tests::expect_near(dx, expected, 1e-14, "dx");
}

TEST_F(GemmPlan, WeightGradientNamesTheGroupsWithoutRows) {
  std::vector<double> dw(4 * in * out, 1.0), expected(4 * in * out, 1.0);
  const GroupedPlan plan = plan_weight_gradient(shape);
  carry_out(plan, x, dy, 1.0, dw);
  for_each_row([&](std::size_t g, std::size_t r) {
    for (std::size_t f = 0; f < out; ++f) {
      for (std::size_t d = 0; d < in; ++d) {
        expected[(g * out + f) * in + d] += dy[r * out + f] * x[r * in + d];
      }
    }
  });
  tests::expect_near(dw, expected, 1e-14, "dw");
  EXPECT_EQ(plan.empty, std::vector<std::int64_t>{in * out});
}

TEST(GemmPlanAlignment, EveryRowMustStartAtSixteenBytes) {
  const std::vector<std::int64_t> rows{3, 5};
  EXPECT_TRUE(is_aligned(plan_linear({16, 24, rows}), 2, 2));
  EXPECT_FALSE(is_aligned(plan_linear({16, 20, rows}), 2, 2));
  EXPECT_TRUE(is_aligned(plan_linear({16, 20, rows}), 4, 4));
  EXPECT_FALSE(is_aligned(plan_data_gradient({15, 16, rows}), 2, 2));
  EXPECT_TRUE(is_aligned(plan_linear({7, 9, {}}), 2, 2));  // nothing to do
}

TEST(GemmPlanSizes, RefuseWhatCublasCannotCount) {
  const std::vector<std::int64_t> rows{std::int64_t{1} << 31};
  EXPECT_THROW(plan_linear({16, 16, rows}), base::InternalError);
}

TEST(Addresses, AreBasePlusOffset) {
  const char base[64] = {};
  const void* addresses[3] = {};
  bodies::run_elements(bodies::AddressElement{base, {{0, 16, 48}}, addresses}, 3);
  EXPECT_EQ(addresses[1], base + 16);
  EXPECT_EQ(addresses[2], base + 48);
}

TEST(TransposedScales, HaveRowsInside) {
  const std::vector<float> scales = {1, 2, 3, 4, 5, 6};  // 3 rows of 2 blocks
  std::vector<float> transposed(6);
  bodies::run_elements(bodies::TransposeElement{scales.data(), 3, 2, transposed.data()}, 6);
  EXPECT_EQ(transposed, (std::vector<float>{1, 3, 5, 2, 4, 6}));
}

}  // namespace
}  // namespace athanor::kernels::cuda
