// Grouped products against one product per group, empty groups included.
#include "kernels/grouped_gemm.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/error.hpp"
#include "support/finite_difference.hpp"

namespace athanor::kernels {
namespace {

using tests::expect_close;
using tests::random_tensor;

const std::vector<std::int64_t> group_rows = {3, 0, 5, 1, 0};

TEST(GroupedGemm, ForwardAndGradientsMatchOneProductPerGroup) {
  const at::Tensor x = random_tensor({9, 6}, 1), w = random_tensor({5, 7, 6}, 2),
                   dy = random_tensor({9, 7}, 3);
  const at::Tensor y = at::empty({9, 7}, at::kDouble), dx = at::empty({9, 6}, at::kDouble);
  grouped_linear(x, w, group_rows, y);
  grouped_linear_data_gradient(dy, w, group_rows, dx);
  const at::Tensor overwritten = at::full({5, 7, 6}, 9.0, at::kDouble), accumulated = overwritten.clone();
  grouped_linear_weight_gradient(dy, x, group_rows, WeightGradient::overwrite, overwritten);
  grouped_linear_weight_gradient(dy, x, group_rows, WeightGradient::accumulate, accumulated);
  std::int64_t first = 0;
  for (std::int64_t g = 0; g < 5; ++g) {
    const std::int64_t count = group_rows[static_cast<std::size_t>(g)];
    const at::Tensor xg = x.narrow(0, first, count), dyg = dy.narrow(0, first, count);
    expect_close(y.narrow(0, first, count), at::matmul(xg, w[g].t()), 1e-14, "y");
    expect_close(dx.narrow(0, first, count), at::matmul(dyg, w[g]), 1e-14, "dx");
    expect_close(overwritten[g], at::matmul(dyg.t(), xg), 1e-14, "dw");
    expect_close(accumulated[g], at::matmul(dyg.t(), xg) + 9.0, 1e-14, "accumulated dw");
    first += count;
  }
}

TEST(GroupedGemm, WeightGradientsOfBf16SumInF32) {
  const at::Tensor x = random_tensor({9, 6}, 1, at::kBFloat16), dy = random_tensor({9, 7}, 3, at::kBFloat16);
  const at::Tensor dw = at::zeros({5, 7, 6}, at::kFloat);
  grouped_linear_weight_gradient(dy, x, group_rows, WeightGradient::accumulate, dw);
  grouped_linear_weight_gradient(dy, x, group_rows, WeightGradient::accumulate, dw);
  const at::Tensor once = at::mm(dy.narrow(0, 0, 3).t(), x.narrow(0, 0, 3)).to(at::kFloat);
  expect_close(dw[0], once * 2, 1e-6, "two additions");
}

TEST(GroupedGemm, NoRowsAtAll) {
  const at::Tensor w = random_tensor({2, 7, 6}, 2), dw = at::ones({2, 7, 6}, at::kDouble);
  const std::vector<std::int64_t> none = {0, 0};
  const at::Tensor x = at::empty({0, 6}, at::kDouble), y = at::empty({0, 7}, at::kDouble);
  grouped_linear(x, w, none, y);
  grouped_linear_weight_gradient(y, x, none, WeightGradient::overwrite, dw);
  EXPECT_EQ(dw.abs().max().item<double>(), 0.0);
}

TEST(GroupedGemm, RefusesCountsThatDoNotSumToTheRows) {
  const at::Tensor w = random_tensor({2, 7, 6}, 2), x = random_tensor({3, 6}, 1),
                   y = at::empty({3, 7}, at::kDouble);
  EXPECT_THROW(grouped_linear(x, w, std::vector<std::int64_t>{1, 1}, y), base::InternalError);
}

}  // namespace
}  // namespace athanor::kernels
