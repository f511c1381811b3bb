// Our matrix product against the plain one: both layouts of both operands, sizes around every block's edge.
#include "kernels/gemm.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "kernels/grouped_gemm.hpp"
#include "kernels/kernel_test.hpp"
#include "support/finite_difference.hpp"

namespace athanor::kernels {
namespace {

using tests::random_values;

template <typename T, typename C>
void compare(const GemmShape& shape, bool a_transposed, bool b_transposed, GemmMode mode) {
  const std::vector<T> a = random_values<T>(shape.rows * shape.depth, 1);
  const std::vector<T> b = random_values<T>(shape.depth * shape.columns, 2);
  const Operand<T> left{a.data(), a_transposed ? 1 : shape.depth, a_transposed ? shape.rows : 1};
  const Operand<T> right{b.data(), b_transposed ? 1 : shape.columns, b_transposed ? shape.depth : 1};
  const std::int64_t stride = shape.columns + 3;  // what lies between rows must stay
  const std::vector<C> before = random_values<C>(shape.rows * stride, 3);
  std::vector<C> actual = before, expected = before;
  cpu::gemm(left, right, shape, mode, actual.data(), stride);
  reference::gemm(left, right, shape, mode, expected.data(), stride);
  const double allowed = sizeof(C) == 2 ? 8e-3 : 2e-6 * static_cast<double>(shape.depth + 8);
  tests::expect_near(actual, tests::widen(expected), allowed, "gemm");
}

template <typename T, typename C>
void compare_all(GemmMode mode) {
  if (!cpu::has_gemm<T>()) {
    GTEST_SKIP() << "this CPU lacks the instructions";
  }
  for (const GemmShape& shape :
       {GemmShape{1, 1, 1}, GemmShape{3, 7, 5}, GemmShape{12, 32, 16}, GemmShape{13, 33, 17},
        GemmShape{25, 300, 31}, GemmShape{250, 40, 130}, GemmShape{17, 48, 1100}, GemmShape{5, 18, 0},
        GemmShape{0, 4, 4}, GemmShape{4, 0, 4}}) {
    for (int layout = 0; layout < 4; ++layout) {
      SCOPED_TRACE(testing::Message()
                   << shape.rows << " x " << shape.columns << " x " << shape.depth << ", layout " << layout);
      compare<T, C>(shape, (layout & 1) != 0, (layout & 2) != 0, mode);
    }
  }
}

TEST(Gemm, F32MatchesReference) {
  compare_all<float, float>(GemmMode::overwrite);
}
TEST(Gemm, F32AddsToReference) {
  compare_all<float, float>(GemmMode::add);
}
TEST(Gemm, Bf16MatchesReference) {
  compare_all<c10::BFloat16, c10::BFloat16>(GemmMode::overwrite);
}
TEST(Gemm, Bf16ToF32MatchesReference) {
  compare_all<c10::BFloat16, float>(GemmMode::overwrite);
}
TEST(Gemm, Bf16AddsInF32) {
  compare_all<c10::BFloat16, float>(GemmMode::add);
}

TEST(Gemm,
     WideRowsOfAPowerOfTwo) {  // results and rows that compete for places in the cache go through copies
  if (!cpu::has_gemm<float>()) {
    GTEST_SKIP() << "this CPU lacks the instructions";
  }
  const std::int64_t rows = 20, columns = 1024, depth = 2048;
  const std::vector<float> a = random_values<float>(rows * depth, 1),
                           b = random_values<float>(depth * columns, 2);
  std::vector<float> actual(static_cast<std::size_t>(rows * columns)), expected = actual;
  for (const std::int64_t part : {std::int64_t{64}, depth}) {
    const Operand<float> left{a.data(), depth, 1}, right{b.data(), columns, 1};
    cpu::gemm(left, right, {rows, columns, part}, GemmMode::overwrite, actual.data(), columns);
    reference::gemm(left, right, {rows, columns, part}, GemmMode::overwrite, expected.data(), columns);
    tests::expect_near(actual, tests::widen(expected), 1e-4, "gemm");
  }
}

TEST(Gemm, AnElementDoesNotDependOnTheOtherRows) {
  if (!cpu::has_gemm<float>()) {
    GTEST_SKIP() << "this CPU lacks the instructions";
  }
  const std::vector<float> a = random_values<float>(50 * 70, 1), b = random_values<float>(70 * 40, 2);
  std::vector<float> all(50 * 40), one(40);
  cpu::gemm<float, float>({a.data(), 70, 1}, {b.data(), 40, 1}, {50, 40, 70}, GemmMode::overwrite, all.data(),
                          40);
  for (std::int64_t row = 0; row < 50; ++row) {
    cpu::gemm<float, float>({a.data() + row * 70, 70, 1}, {b.data(), 40, 1}, {1, 40, 70}, GemmMode::overwrite,
                            one.data(), 40);
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + row * 40)) << row;
  }
}

TEST(Gemm, NonFiniteValuesStay) {
  if (!cpu::has_gemm<c10::BFloat16>()) {
    GTEST_SKIP() << "this CPU lacks the instructions";
  }
  std::vector<c10::BFloat16> a(3 * 5, 1.0f), b(5 * 2, 1.0f), c(3 * 2);
  a[5 + 4] = std::numeric_limits<float>::quiet_NaN();  // row 1, the last, unpaired one along the depth
  cpu::gemm<c10::BFloat16, c10::BFloat16>({a.data(), 5, 1}, {b.data(), 2, 1}, {3, 2, 5}, GemmMode::overwrite,
                                          c.data(), 2);
  EXPECT_EQ(static_cast<float>(c[0]), 5.0f);
  EXPECT_TRUE(std::isnan(static_cast<float>(c[2])));
  EXPECT_EQ(static_cast<float>(c[4]), 5.0f);
}

TEST(Matmul, TakesEveryLayoutAndType) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::Tensor a = tests::random_tensor({20, 14}, 1, type), b = tests::random_tensor({14, 9}, 2, type);
    const at::Tensor expected = at::matmul(a.to(at::kDouble), b.to(at::kDouble));
    const at::Tensor strided = at::zeros({20, 28}, a.options()).slice(1, 0, 28, 2);
    strided.copy_(a);
    const double allowed = type == at::kBFloat16 ? 3e-2 : type == at::kFloat ? 1e-5 : 1e-13;
    tests::expect_close(kernels::matmul(a, b).to(at::kDouble), expected, allowed, "rows");
    tests::expect_close(kernels::matmul(a.t().contiguous().t(), b.t().contiguous().t()).to(at::kDouble),
                        expected, allowed, "columns");
    tests::expect_close(kernels::matmul(strided, b).to(at::kDouble), expected, allowed, "neither");
    const at::Tensor sum = at::ones({20, 9}, type == at::kDouble ? at::kDouble : at::kFloat);
    matmul_into(a, b, GemmMode::add, sum);
    tests::expect_close(sum.to(at::kDouble), expected + 1.0, allowed, "added");
  }
}

}  // namespace
}  // namespace athanor::kernels
