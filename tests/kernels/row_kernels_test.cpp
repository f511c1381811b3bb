// Kernels over rows (norm, swiglu, rotary, permutation, cross-entropy): fast against the plain reference in
// f64.
#include "kernels/activation.hpp"
#include "kernels/cross_entropy.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/norm.hpp"
#include "kernels/permute.hpp"
#include "kernels/rotary.hpp"

namespace athanor::kernels {
namespace {

using tests::expect_near;
using tests::random_values;
using tests::unit_roundoff;
using tests::widen;

template <typename T>
class RowKernels : public ::testing::Test {};
TYPED_TEST_SUITE(RowKernels, tests::ElementTypes);

TYPED_TEST(RowKernels, RmsNormForwardAndBackward) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t rows = 5;
  for (const std::int64_t width : tests::test_widths()) {
    const auto x = random_values<T>(rows * width, 1);
    const auto dy = random_values<T>(rows * width, 2);
    const auto weight = random_values<T>(width, 3);
    std::vector<T> y(x.size()), dx(x.size());
    std::vector<A> rstd(rows), dweight(static_cast<std::size_t>(width), A(1));
    cpu::rms_norm_forward(x.data(), weight.data(), rows, width, 1e-6, y.data(), rstd.data());
    cpu::rms_norm_backward(dy.data(), x.data(), weight.data(), rstd.data(), rows, width, dx.data(),
                           dweight.data());

    const auto x64 = widen(x), dy64 = widen(dy), weight64 = widen(weight);
    std::vector<double> y64(x.size()), dx64(x.size()), rstd64(rows),
        dweight64(static_cast<std::size_t>(width), 1.0);
    reference::rms_norm_forward(x64.data(), weight64.data(), rows, width, 1e-6, y64.data(), rstd64.data());
    reference::rms_norm_backward(dy64.data(), x64.data(), weight64.data(), rstd64.data(), rows, width,
                                 dx64.data(), dweight64.data());
    expect_near(y, y64, 8 * unit_roundoff<T>(), "y");
    expect_near(rstd, rstd64, 8 * unit_roundoff<A>(), "rstd");
    if (width > 1) {  // one column: dx is 0 up to cancellation
      expect_near(dx, dx64, 16 * unit_roundoff<T>(), "dx");
    }
    expect_near(dweight, dweight64, 32 * unit_roundoff<T>(), "dweight");
  }
}

TYPED_TEST(RowKernels, SwigluForwardAndBackward) {
  using T = TypeParam;
  constexpr std::int64_t rows = 3;
  for (const std::int64_t width : tests::test_widths()) {
    auto gate_up = random_values<T>(rows * 2 * width, 4, 4.0);
    gate_up[0] = static_cast<T>(-200.0f);  // silu vanishes without overflow
    const auto dy = random_values<T>(rows * width, 5);
    std::vector<T> y(dy.size()), dgate_up(gate_up.size());
    cpu::swiglu_forward(gate_up.data(), rows, width, y.data());
    cpu::swiglu_backward(dy.data(), gate_up.data(), rows, width, dgate_up.data());

    const auto gate_up64 = widen(gate_up), dy64 = widen(dy);
    std::vector<double> y64(dy.size()), dgate_up64(gate_up.size());
    reference::swiglu_forward(gate_up64.data(), rows, width, y64.data());
    reference::swiglu_backward(dy64.data(), gate_up64.data(), rows, width, dgate_up64.data());
    expect_near(y, y64, 8 * unit_roundoff<T>(), "y");
    expect_near(dgate_up, dgate_up64, 16 * unit_roundoff<T>(), "dgate_up");
  }
}

TYPED_TEST(RowKernels, RotaryAndItsInverse) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t head_dim : {2, 6, 32, 34, 128}) {
    const HeadsShape shape{3, 2, head_dim, 2 * head_dim + 5};  // tokens lie apart, as in a wider projection
    const auto x = random_values<T>(shape.tokens * shape.token_stride, 6);
    const auto cos = random_values<A>(shape.tokens * head_dim / 2, 7);
    const auto sin = random_values<A>(shape.tokens * head_dim / 2, 8);
    std::vector<T> y(static_cast<std::size_t>(shape.tokens * 2 * head_dim));
    std::vector<double> y64(y.size());
    const auto x64 = widen(x), cos64 = widen(cos), sin64 = widen(sin);
    for (const RotaryDirection direction : {RotaryDirection::forward, RotaryDirection::inverse}) {
      cpu::rotary(x.data(), cos.data(), sin.data(), shape, direction, y.data());
      reference::rotary(x64.data(), cos64.data(), sin64.data(), shape, direction, y64.data());
      expect_near(y, y64, 4 * unit_roundoff<T>(), "y");
    }
    const std::vector<T> before = y;
    const HeadsShape dense{3, 2, head_dim, 2 * head_dim};
    std::vector<T> elsewhere(y.size());
    cpu::rotary(before.data(), cos.data(), sin.data(), dense, RotaryDirection::forward, elsewhere.data());
    cpu::rotary(y.data(), cos.data(), sin.data(), dense, RotaryDirection::forward, y.data());
    expect_near(y, widen(elsewhere), 0.0, "in place");
  }
}

TYPED_TEST(RowKernels, HeadNormRotary) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t head_dim : {2, 6, 32, 34, 128}) {
    const HeadsShape shape{3, 2, head_dim, 2 * head_dim + 5};
    const auto x = random_values<T>(shape.tokens * shape.token_stride, 6);
    const auto dy = random_values<T>(shape.tokens * 2 * head_dim, 9);
    const auto weight = random_values<T>(head_dim, 10);
    const auto cos = random_values<A>(shape.tokens * head_dim / 2, 7);
    const auto sin = random_values<A>(shape.tokens * head_dim / 2, 8);
    std::vector<T> y(dy.size()), dx(x.size());
    std::vector<A> rstd(6), dweight(static_cast<std::size_t>(head_dim));
    cpu::head_norm_rotary_forward(x.data(), weight.data(), cos.data(), sin.data(), shape, 1e-6, y.data(),
                                  rstd.data());
    cpu::head_norm_rotary_backward(dy.data(), x.data(), weight.data(), cos.data(), sin.data(), rstd.data(),
                                   shape, dx.data(), dweight.data());

    const auto x64 = widen(x), dy64 = widen(dy), weight64 = widen(weight), cos64 = widen(cos),
               sin64 = widen(sin);
    std::vector<double> y64(y.size()), dx64(x.size()), rstd64(6), dweight64(dweight.size());
    reference::head_norm_rotary_forward(x64.data(), weight64.data(), cos64.data(), sin64.data(), shape, 1e-6,
                                        y64.data(), rstd64.data());
    reference::head_norm_rotary_backward(dy64.data(), x64.data(), weight64.data(), cos64.data(), sin64.data(),
                                         rstd64.data(), shape, dx64.data(), dweight64.data());
    expect_near(y, y64, 16 * unit_roundoff<T>(), "y");
    expect_near(dx, dx64, 16 * unit_roundoff<T>(), "dx");
    expect_near(dweight, dweight64, 32 * unit_roundoff<T>(), "dweight");
  }
}

TYPED_TEST(RowKernels, PermuteAndCombine) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t tokens = 3, choices = 2, rows = 5;
  const std::vector<std::int64_t> slot = {4, 0, -1, 2, 1, 3};
  for (const std::int64_t width : tests::test_widths()) {
    const auto x = random_values<T>(rows * width, 11);
    const auto gates = random_values<A>(tokens * choices, 12);
    const auto dy = random_values<T>(tokens * width, 13);
    std::vector<T> gathered(x.size()), y(dy.size()), dx(x.size());
    std::vector<A> dgates(slot.size()), scattered(x.size(), A(1));
    const std::vector<std::int64_t> source = {2, 2, 0, 4, 1};
    cpu::permute_tokens(x.data(), source.data(), rows, width, gathered.data());
    cpu::combine_rows(x.data(), slot.data(), gates.data(), tokens, choices, width, y.data());
    cpu::combine_rows_backward(dy.data(), x.data(), slot.data(), gates.data(), tokens, choices, width,
                               dx.data(), dgates.data());
    cpu::add_rows(x.data(), std::vector<std::int64_t>{2, 2, -1, 0, 2}.data(), rows, width, scattered.data());

    const auto x64 = widen(x), gates64 = widen(gates), dy64 = widen(dy);
    std::vector<double> gathered64(x.size()), y64(dy.size()), dx64(x.size()), dgates64(slot.size());
    std::vector<double> scattered64(x.size(), 1.0);
    reference::permute_tokens(x64.data(), source.data(), rows, width, gathered64.data());
    reference::combine_rows(x64.data(), slot.data(), gates64.data(), tokens, choices, width, y64.data());
    reference::combine_rows_backward(dy64.data(), x64.data(), slot.data(), gates64.data(), tokens, choices,
                                     width, dx64.data(), dgates64.data());
    reference::add_rows(x64.data(), std::vector<std::int64_t>{2, 2, -1, 0, 2}.data(), rows, width,
                        scattered64.data());
    expect_near(gathered, gathered64, 0.0, "gathered");
    expect_near(y, y64, 4 * unit_roundoff<T>(), "y");
    expect_near(dx, dx64, 4 * unit_roundoff<T>(), "dx");
    expect_near(dgates, dgates64, 64 * unit_roundoff<A>(), "dgates");
    expect_near(scattered, scattered64, 8 * unit_roundoff<A>(), "scattered");
  }
}

TYPED_TEST(RowKernels, CrossEntropy) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t rows = 4;
  for (const std::int64_t vocab : tests::test_widths()) {
    auto logits = random_values<T>(rows * vocab, 14, 5.0);
    const std::vector<std::int64_t> labels = {0, vocab - 1, -100, vocab + 3};
    std::vector<SoftmaxStatistics<A>> statistics(rows);
    cpu::softmax_statistics(logits.data(), labels.data(), rows, vocab, statistics.data());
    auto logits64 = widen(logits);
    std::vector<SoftmaxStatistics<double>> statistics64(rows);
    reference::softmax_statistics(logits64.data(), labels.data(), rows, vocab, statistics64.data());
    std::vector<A> maximum, inverse_sum;
    std::vector<double> maximum64, inverse_sum64;
    for (std::size_t r = 0; r < rows; ++r) {
      ASSERT_EQ(static_cast<double>(statistics[r].maximum), statistics64[r].maximum);
      ASSERT_NEAR(statistics[r].sum_exp, statistics64[r].sum_exp,
                  32 * unit_roundoff<A>() * statistics64[r].sum_exp);
      ASSERT_EQ(static_cast<double>(statistics[r].target), statistics64[r].target);
      maximum.push_back(statistics[r].maximum);
      maximum64.push_back(statistics64[r].maximum);
      inverse_sum.push_back(r == 2 ? A(0) : A(1) / statistics[r].sum_exp);
      inverse_sum64.push_back(r == 2 ? 0.0 : 1.0 / statistics64[r].sum_exp);
    }
    cpu::cross_entropy_backward(logits.data(), labels.data(), maximum.data(), inverse_sum.data(), rows, vocab,
                                A(8));
    reference::cross_entropy_backward(logits64.data(), labels.data(), maximum64.data(), inverse_sum64.data(),
                                      rows, vocab, 8.0);
    if (vocab > 1) {  // one entry: the gradient is 0 up to rounding
      expect_near(logits, logits64, 32 * unit_roundoff<T>(), "dlogits");
    }
  }
}

TEST(RowKernelsF32, CrossEntropyOfAnEmptyShard) {
  const std::vector<std::int64_t> labels = {3};
  SoftmaxStatistics<float> statistics{};
  cpu::softmax_statistics<float>(nullptr, labels.data(), 1, 0, &statistics);
  EXPECT_EQ(statistics.maximum, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(statistics.sum_exp, 0.0f);
  EXPECT_EQ(statistics.target, 0.0f);
}

TEST(RowKernelsF32, NoRowsAreOrdinary) {
  float untouched = 7.0f;
  cpu::rms_norm_forward<float>(nullptr, nullptr, 0, 8, 1e-6, nullptr, nullptr);
  cpu::rms_norm_backward<float>(nullptr, nullptr, nullptr, nullptr, 0, 1, nullptr, &untouched);
  cpu::swiglu_forward<float>(nullptr, 0, 8, nullptr);
  cpu::swiglu_backward<float>(nullptr, nullptr, 0, 8, nullptr);
  cpu::permute_tokens<float>(nullptr, nullptr, 0, 8, nullptr);
  cpu::combine_rows<float>(nullptr, nullptr, nullptr, 0, 4, 8, nullptr);
  cpu::combine_rows_backward<float>(nullptr, nullptr, nullptr, nullptr, 0, 4, 8, nullptr, nullptr);
  cpu::add_rows<float>(nullptr, nullptr, 0, 8, nullptr);
  EXPECT_EQ(untouched, 7.0f);
}

}  // namespace
}  // namespace athanor::kernels
