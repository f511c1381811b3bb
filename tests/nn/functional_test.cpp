// Dense building blocks: gradients against finite differences in f64, values against plain ATen, sinks,
// 16-bit types.
#include "nn/functional.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "nn/token_batch.hpp"
#include "support/finite_difference.hpp"

namespace athanor::nn {
namespace {

using tests::expect_close;
using tests::gradients_match;
using tests::random_tensor;
using Inputs = std::vector<at::Tensor>;

/// A scalar that weighs every output element differently.
at::Tensor weighted_sum(const at::Tensor& y) {
  return (y * random_tensor(y.sizes(), 99).to(y.scalar_type())).sum();
}

at::Tensor plain_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(parallel::accumulation_type(x.scalar_type()));
  return weight * (wide * (wide.pow(2).mean(-1, true) + eps).rsqrt()).to(x.scalar_type());
}

at::Tensor plain_rotary(const at::Tensor& x, const RotaryTables& tables) {
  const std::int64_t half = x.size(-1) / 2;
  const at::Tensor cos = at::cat({tables.cos, tables.cos}, -1).unsqueeze(2);
  const at::Tensor sin = at::cat({tables.sin, tables.sin}, -1).unsqueeze(2);
  const at::Tensor turned = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
  return x * cos + turned * sin;
}

RotaryTables example_tables(at::ScalarType dtype, std::int64_t head_dim) {
  return rotary_tables(at::arange(10, at::kLong).view({2, 5}) * 3, head_dim, 100.0, dtype);
}

TEST(Linear, GradientsMatchFiniteDifferences) {
  const auto function = [](const Inputs& in) { return weighted_sum(nn::linear(in[0], {in[1]})); };
  EXPECT_TRUE(gradients_match(function, {random_tensor({2, 3, 4}, 1), random_tensor({5, 4}, 2)}));
  EXPECT_TRUE(gradients_match(function, {random_tensor({1, 4}, 1), random_tensor({2, 3, 4}, 2)}));
}

TEST(Linear, ReadsStridedRowsAndFlattensTheWeight) {
  const at::Tensor x = random_tensor({3, 4, 2}, 1).transpose(1, 2), w = random_tensor({2, 3, 4}, 2);
  expect_close(nn::linear(x, {w}), at::matmul(x, w.view({6, 4}).t()), 1e-14, "y");
}

TEST(Linear, SendsItsWeightGradientToTheSinkAlone) {
  const at::Tensor x = random_tensor({3, 4}, 1).requires_grad_(),
                   w = random_tensor({5, 4}, 2).requires_grad_();
  parallel::GradAccumulator sink;
  sink.attach(at::full({5, 4}, 7.0, at::kDouble));
  for (int pass = 0; pass < 2; ++pass) {
    nn::linear(x, {w, &sink}).sum().backward();
  }
  EXPECT_FALSE(w.grad().defined());
  expect_close(sink.buffer(), 2 * at::ones({5, 3}, at::kDouble).mm(x.detach()), 1e-14, "two passes summed");
}

TEST(Linear, InputsWithoutGradientGetNone) {
  const at::Tensor x = random_tensor({3, 4}, 1), w = random_tensor({5, 4}, 2).requires_grad_();
  nn::linear(x, {w}).sum().backward();
  EXPECT_TRUE(w.grad().defined());
  EXPECT_FALSE(nn::linear(x, {w.detach()}).requires_grad());
}

TEST(Linear, NoRowsAndNoColumns) {
  const at::Tensor x = at::empty({0, 4}, at::kDouble).requires_grad_(),
                   w = random_tensor({5, 4}, 2).requires_grad_();
  nn::linear(x, {w}).sum().backward();
  EXPECT_EQ(w.grad().abs().max().item<double>(), 0.0);
  const at::Tensor narrow = at::empty({2, 3, 0}, at::kDouble).requires_grad_();
  const at::Tensor y = nn::linear(narrow, {at::empty({5, 0}, at::kDouble)});
  EXPECT_EQ(y.sizes(), (std::vector<std::int64_t>{2, 3, 5}));
  EXPECT_EQ(y.abs().max().item<double>(), 0.0);
}

TEST(RmsNorm, GradientsMatchFiniteDifferences) {
  const auto function = [](const Inputs& in) { return weighted_sum(rms_norm(in[0], {in[1]}, 1e-5)); };
  EXPECT_TRUE(gradients_match(function, {random_tensor({2, 3, 21}, 1), random_tensor({21}, 2)}));
  EXPECT_TRUE(gradients_match(function, {random_tensor({4, 1}, 1), random_tensor({1}, 2)}));
}

TEST(RmsNorm, MatchesTheReferenceModelInEveryType) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor x = random_tensor({2, 5, 33}, 1, dtype), w = random_tensor({33}, 2, dtype);
    const double tolerance = dtype == at::kDouble ? 1e-14 : dtype == at::kFloat ? 1e-6 : 4e-3;
    expect_close(rms_norm(x, {w}, 1e-6), plain_rms_norm(x, w, 1e-6), tolerance, "y");
  }
}

TEST(RmsNorm, WeightGradientOfBf16IsSummedInF32) {
  const at::Tensor x = random_tensor({64, 8}, 1, at::kBFloat16);
  const at::Tensor w = at::ones({8}, at::kBFloat16).requires_grad_();
  parallel::GradAccumulator sink;
  sink.attach(at::empty({8}, at::kFloat));
  rms_norm(x, {w, &sink}, 1e-6).sum().backward();
  const at::Tensor expected = plain_rms_norm(x, at::ones({8}, at::kBFloat16), 1e-6).to(at::kFloat).sum(0);
  expect_close(sink.buffer(), expected, 1e-5, "dweight");
}

TEST(Swiglu, GradientsMatchFiniteDifferences) {
  const auto function = [](const Inputs& in) { return weighted_sum(swiglu(in[0])); };
  EXPECT_TRUE(gradients_match(function, {random_tensor({2, 3, 38}, 1)}));
  const at::Tensor x = random_tensor({3, 10}, 2);
  expect_close(swiglu(x), at::silu(x.narrow(1, 0, 5)) * x.narrow(1, 5, 5), 1e-14, "y");
  EXPECT_EQ(swiglu(at::empty({0, 8}, at::kFloat)).sizes(), (std::vector<std::int64_t>{0, 4}));
}

TEST(Rotary, TablesAreThoseOfTheHalfSplitLayout) {
  const RotaryTables tables = rotary_tables(at::tensor({0, 7}, at::kLong), 4, 100.0, at::kDouble);
  const at::Tensor angles = at::tensor({0.0, 0.0, 7.0, 0.7}, at::kDouble).view({2, 2});
  expect_close(tables.cos, angles.cos(), 1e-15, "cos");
  expect_close(tables.sin, angles.sin(), 1e-15, "sin");
}

TEST(Rotary, GradientsMatchFiniteDifferences) {
  const RotaryTables tables = example_tables(at::kDouble, 6);
  const auto function = [&](const Inputs& in) { return weighted_sum(apply_rotary(in[0], tables)); };
  EXPECT_TRUE(gradients_match(function, {random_tensor({2, 5, 3, 6}, 1)}));
  const at::Tensor x = random_tensor({2, 5, 3, 6}, 2);
  expect_close(apply_rotary(x, tables), plain_rotary(x, tables), 1e-14, "y");
}

TEST(HeadNormRotary, GradientsMatchFiniteDifferencesThroughAStridedInput) {
  const RotaryTables tables = example_tables(at::kDouble, 6);
  const auto function = [&](const Inputs& in) {
    const at::Tensor keys = in[0].view({2, 5, 2, 3, 6}).unbind(2)[0];
    return weighted_sum(head_norm_rotary(keys, {in[1]}, 1e-5, tables));
  };
  EXPECT_TRUE(gradients_match(function, {random_tensor({2, 5, 36}, 1), random_tensor({6}, 2)}));
}

TEST(HeadNormRotary, MatchesNormThenRotaryInEveryType) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const RotaryTables tables = example_tables(parallel::accumulation_type(dtype), 32);
    const at::Tensor x = random_tensor({2, 5, 3, 32}, 1, dtype), w = random_tensor({32}, 2, dtype);
    const at::Tensor expected = plain_rotary(plain_rms_norm(x, w, 1e-6).to(tables.cos.scalar_type()), tables);
    const double tolerance = dtype == at::kDouble ? 1e-14 : dtype == at::kFloat ? 1e-6 : 4e-3;
    expect_close(head_norm_rotary(x, {w}, 1e-6, tables), expected, tolerance, "y");
    expect_close(head_norm_rotary(x, {}, 1e-6, tables), plain_rotary(x.to(tables.cos.scalar_type()), tables),
                 tolerance, "without a norm");
  }
}

TEST(Dropout, MaskDependsOnSamplePositionAndChannelAlone) {
  const DropoutOptions options{0.25, 5, "layers.0.attention"};
  const at::Tensor x = at::ones({3, 8, 10}, at::kFloat);
  const at::Tensor samples = at::tensor({40, 7, 12}, at::kLong);
  const at::Tensor whole = dropout(x, samples, 0, options);
  // The same samples in another order, and only the second half of their positions.
  const at::Tensor part =
      dropout(at::ones({2, 4, 10}, at::kFloat), at::tensor({12, 40}, at::kLong), 4, options);
  EXPECT_TRUE(at::equal(part, at::stack({whole[2], whole[0]}).narrow(1, 4, 4)));
  EXPECT_FALSE(at::equal(whole, dropout(x, samples, 0, {0.25, 5, "layers.1.attention"})));
  EXPECT_FALSE(at::equal(whole, dropout(x, samples, 0, {0.25, 6, "layers.0.attention"})));
}

TEST(Dropout, KeepsTheMeanAndGivesTheMaskAsGradient) {
  const DropoutOptions options{0.25, 5, "site"};
  const at::Tensor samples = at::arange(64, at::kLong);
  const at::Tensor x = at::ones({64, 8, 32}, at::kDouble).requires_grad_();
  const at::Tensor y = dropout(x, samples, 0, options);
  EXPECT_NEAR(y.mean().item<double>(), 1.0, 0.02);
  EXPECT_NEAR(y.max().item<double>(), 1.0 / 0.75, 1e-12);
  y.sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), y.detach()));
  EXPECT_TRUE(at::equal(dropout(x, samples, 0, {0.0, 5, "site"}), x));
}

TEST(SequenceSlice, CountsRealPositionsOfEachRank) {
  // 10 real positions padded to 12 over 4 ranks.
  const std::vector<std::int64_t> expected = {3, 3, 3, 1};
  for (int rank = 0; rank < 4; ++rank) {
    const SequenceSlice slice = SequenceSlice::of(padded_sequence(10, 4), 10, rank, 4);
    EXPECT_EQ(slice.first, 3 * rank);
    EXPECT_EQ(slice.count, 3);
    EXPECT_EQ(slice.real_count, expected[static_cast<std::size_t>(rank)]);
  }
  EXPECT_EQ(SequenceSlice::of(8, 1, 3, 4).real_count, 0);
}

}  // namespace
}  // namespace athanor::nn
