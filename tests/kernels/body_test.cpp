// The bodies that the CUDA kernels run, run by the host's teams, against the plain reference.
#include "kernels/activation.hpp"
#include "kernels/bodies/activation.hpp"
#include "kernels/bodies/adamw.hpp"
#include "kernels/bodies/columns.hpp"
#include "kernels/bodies/cross_entropy.hpp"
#include "kernels/bodies/permute.hpp"
#include "kernels/bodies/reduce.hpp"
#include "kernels/bodies/rotary.hpp"
#include "kernels/permute.hpp"
#include "kernels/twin_cases.hpp"

namespace athanor::kernels {
namespace {

using tests::expect_near;
using tests::expect_same;
using tests::random_values;
using tests::unit_roundoff;
using tests::widen;

template <typename T>
std::vector<double> zeros_like(const std::vector<T>& x) {
  return std::vector<double>(x.size());
}

TEST(HostTeam, AddsInTheOrderOfItsTree) {
  // Sums of numbers whose rounding shows the order: lane j has 1 + ... of its own, and then pairs at half
  // distance.
  std::vector<float> x(70);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(i % 3 == 0 ? 1e8 : 1.0 + static_cast<double>(i));
  }
  std::array<float, 32> lane{};
  for (std::size_t i = 0; i < x.size(); ++i) {
    lane[i % 32] += x[i];
  }
  for (std::size_t step = 16; step > 0; step /= 2) {
    for (std::size_t j = 0; j < step; ++j) {
      lane[j] += lane[j + step];
    }
  }
  const bodies::HostTeam<32> team;
  const auto sum =
      bodies::team_sum<float>(team, 70, [&](std::int64_t i) { return x[static_cast<std::size_t>(i)]; });
  EXPECT_EQ(sum, lane[0]);
  EXPECT_EQ(bodies::team_sum<float>(team, 0, [](std::int64_t) { return 1.0f; }), 0.0f);
  EXPECT_EQ(bodies::team_maximum<float>(team, 0, -3.0f, [](std::int64_t) { return 1.0f; }), -3.0f);
}

template <typename F, typename T>
void expect_fp8_body(const std::vector<T>& x, std::int64_t rows_count, std::int64_t width,
                     base::Fp8Format format) {
  const Fp8Rows rows = Fp8Rows::apart(rows_count, width);
  const auto blocks = static_cast<std::size_t>(rows_count * fp8_blocks(width));
  std::vector<float> x32(x.size()), expected_scales(blocks), scales(blocks), back32(x.size());
  std::transform(x.begin(), x.end(), x32.begin(), [](T value) { return bodies::load(value); });
  std::vector<std::uint8_t> expected_codes(x.size()), codes(x.size());
  Fp8Counts expected_counts, counts;
  reference::quantize_fp8_blocks(x32.data(), rows, format, expected_codes.data(), expected_scales.data(),
                                 expected_counts);
  bodies::run_rows(bodies::QuantizeFp8Block<F, T>{x.data(), rows, codes.data(), scales.data(), &counts},
                   static_cast<std::int64_t>(blocks));
  expect_same(codes, expected_codes, "codes");
  expect_same(scales, expected_scales, "scales");
  EXPECT_EQ(counts.underflow, expected_counts.underflow);
  EXPECT_EQ(counts.nonfinite, expected_counts.nonfinite);

  std::vector<T> back(x.size());
  reference::dequantize_fp8_blocks(codes.data(), scales.data(), rows, format, back32.data());
  bodies::run_rows(bodies::DequantizeFp8Block<F, T>{codes.data(), scales.data(), rows, back.data()},
                   static_cast<std::int64_t>(blocks));
  std::vector<T> expected_back(x.size());
  std::transform(back32.begin(), back32.end(), expected_back.begin(),
                 [](float value) { return bodies::store<T>(value); });
  expect_same(back, expected_back, "numbers");

  std::vector<float> sum(x.size(), 0.25f), expected_sum(x.size(), 0.25f);
  reference::add_fp8_blocks(codes.data(), scales.data(), rows, format, expected_sum.data());
  bodies::run_rows(bodies::AddFp8Block<F>{codes.data(), scales.data(), rows, sum.data()},
                   static_cast<std::int64_t>(blocks));
  for (std::size_t i = 0; i < sum.size(); ++i) {
    ASSERT_TRUE(std::isnan(expected_sum[i])
                    ? std::isnan(sum[i])
                    : std::abs(sum[i] - expected_sum[i]) <= 2e-7f * std::abs(expected_sum[i]) + 1e-7f);
  }
}

template <typename T>
class Fp8Bodies : public ::testing::Test {};
using Fp8Types = ::testing::Types<float, c10::BFloat16, c10::Half>;
TYPED_TEST_SUITE(Fp8Bodies, Fp8Types);

TYPED_TEST(Fp8Bodies, HaveTheReferencesBits) {
  for (const std::int64_t width : {0, 1, 3, 127, 128, 129, 300}) {
    for (const std::int64_t rows : {0, 1, 5}) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(width));
      auto x = random_values<TypeParam>(rows * width, 3 + static_cast<std::uint64_t>(width), 3.0);
      for (std::size_t i = 0; i < x.size(); i += 7) {
        x[i] = static_cast<TypeParam>(static_cast<float>(x[i]) * 1e-4f);
      }
      if (x.size() > 200) {
        x[131 % x.size()] = static_cast<TypeParam>(std::numeric_limits<float>::quiet_NaN());
        x[x.size() - 1] = static_cast<TypeParam>(-std::numeric_limits<float>::infinity());
      }
      expect_fp8_body<bodies::E4m3>(x, rows, width, base::Fp8Format::e4m3);
      expect_fp8_body<bodies::E5m2>(x, rows, width, base::Fp8Format::e5m2);
    }
  }
}

TEST(AdamwBody, MatchesReference) {
  const AdamwScalars scalars = {.lr = 1e-2,
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .weight_decay = 0.1,
                                .bias_correction1 = 0.19,
                                .bias_correction2 = 0.0975,
                                .gradient_scale = 0.25};
  auto master = random_values<float>(1003, 1), m = random_values<float>(1003, 2, 0.1);
  auto v = random_values<float>(1003, 3, 0.01);
  const auto grad = random_values<float>(1003, 4);
  std::transform(v.begin(), v.end(), v.begin(), [](float value) { return value * value; });
  auto master64 = widen(master), m64 = widen(m), v64 = widen(v);
  reference::adamw_update(master64.data(), m64.data(), v64.data(), widen(grad).data(), 1003, scalars);
  std::vector<c10::BFloat16> copy(1003);
  bodies::run_elements(
      bodies::AdamwElement<float, c10::BFloat16>{master.data(), m.data(), v.data(), grad.data(),
                                                 bodies::AdamwFactors<float>(scalars), copy.data()},
      1003);
  expect_near(master, master64, 8 * unit_roundoff<float>(), "master");
  expect_near(m, m64, 8 * unit_roundoff<float>(), "m");
  expect_near(v, v64, 8 * unit_roundoff<float>(), "v");
  std::vector<c10::BFloat16> converted(1003);
  bodies::run_elements(bodies::ConvertElement<float, c10::BFloat16>{master.data(), converted.data()}, 1003);
  expect_same(copy, converted, "copy");
}

template <typename T>
class Bodies : public ::testing::Test {};
TYPED_TEST_SUITE(Bodies, tests::ElementTypes);

TYPED_TEST(Bodies, PermuteAndAddRows) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t rows = 300, destinations = 11;
  for (const std::int64_t width : tests::test_widths()) {
    const auto x = random_values<T>(destinations * width, 1), y = random_values<T>(rows * width, 2);
    std::vector<std::int64_t> source(rows);
    for (std::size_t i = 0; i < rows; ++i) {
      source[i] = static_cast<std::int64_t>(i * i % destinations);
    }
    std::vector<T> out(y.size()), expected_out(y.size());
    bodies::run_rows(bodies::PermuteRow<T>{x.data(), source.data(), width, out.data()}, rows);
    cpu::permute_tokens(x.data(), source.data(), rows, width, expected_out.data());
    expect_same(out, expected_out, "permute_tokens");

    const auto row = tests::example_rows(rows, destinations);
    std::vector<A> sum(static_cast<std::size_t>(destinations * width), A(0.5)), expected_sum = sum;
    bodies::run_rows(bodies::AddOwnedRows<T>{y.data(), row.data(), rows, width, sum.data()},
                     bodies::add_rows_owners);
    cpu::add_rows(y.data(), row.data(), rows, width, expected_sum.data());
    expect_same(sum, expected_sum, "add_rows");  // the same order, and nothing but additions
  }
}

TYPED_TEST(Bodies, CombineRows) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t tokens = 6, choices = 4;
  const auto slot = tests::example_slots(tokens, choices);
  for (const std::int64_t width : tests::test_widths()) {
    for (const bool has_gates : {true, false}) {
      const auto x = random_values<T>(tokens * choices * width, 1), dy = random_values<T>(tokens * width, 2);
      const auto gates = random_values<A>(tokens * choices, 3);
      std::vector<T> y(dy.size()), dx(x.size());
      std::vector<A> dgates(gates.size());
      const A* g = has_gates ? gates.data() : nullptr;
      bodies::run_rows(bodies::CombineRow<T>{x.data(), slot.data(), g, choices, width, y.data()}, tokens);
      bodies::run_rows(bodies::CombineRowBackward<T>{dy.data(), x.data(), slot.data(), g, choices, width,
                                                     dx.data(), dgates.data()},
                       tokens * choices);
      const auto x64 = widen(x), dy64 = widen(dy), gates64 = widen(gates);
      auto y64 = zeros_like(y), dx64 = zeros_like(dx), dgates64 = zeros_like(dgates);
      const double* g64 = has_gates ? gates64.data() : nullptr;
      reference::combine_rows(x64.data(), slot.data(), g64, tokens, choices, width, y64.data());
      reference::combine_rows_backward(dy64.data(), x64.data(), slot.data(), g64, tokens, choices, width,
                                       dx64.data(), dgates64.data());
      expect_near(y, y64, 4 * unit_roundoff<T>(), "y");
      expect_near(dx, dx64, 4 * unit_roundoff<T>(), "dx");
      expect_near(dgates, dgates64, 32 * unit_roundoff<A>(), "dgates");
    }
  }
}

TYPED_TEST(Bodies, CrossEntropy) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t rows = 6;
  for (const std::int64_t vocab : {0, 1, 17, 256, 257, 1000}) {
    const auto labels = tests::example_labels(rows, vocab);
    auto logits = random_values<T>(rows * vocab, 1, 3.0);
    auto logits64 = widen(logits);
    std::vector<SoftmaxStatistics<A>> statistics(rows);
    std::vector<SoftmaxStatistics<double>> expected(rows);
    bodies::run_rows(bodies::SoftmaxStatisticsRow<T>{logits.data(), labels.data(), vocab, statistics.data()},
                     rows);
    reference::softmax_statistics(logits64.data(), labels.data(), rows, vocab, expected.data());
    std::vector<A> maximum(rows), inverse(rows);
    std::vector<double> maximum64(rows), inverse64(rows);
    for (std::size_t r = 0; r < rows; ++r) {
      EXPECT_EQ(static_cast<double>(statistics[r].maximum), expected[r].maximum);
      EXPECT_EQ(static_cast<double>(statistics[r].target), expected[r].target);
      EXPECT_NEAR(statistics[r].sum_exp, expected[r].sum_exp, 64 * unit_roundoff<A>() * expected[r].sum_exp);
      maximum[r] = statistics[r].maximum;
      maximum64[r] = expected[r].maximum;
      inverse64[r] = r == 4 || vocab == 0 ? 0.0 : 1.0 / expected[r].sum_exp;  // row 4: an ignored label
      inverse[r] = static_cast<A>(inverse64[r]);
    }
    bodies::run_rows(bodies::CrossEntropyBackwardRow<T>{logits.data(), labels.data(), maximum.data(),
                                                        inverse.data(), vocab, A(0.5)},
                     rows);
    reference::cross_entropy_backward(logits64.data(), labels.data(), maximum64.data(), inverse64.data(),
                                      rows, vocab, 0.5);
    expect_near(logits, logits64, 8 * unit_roundoff<T>(), "gradient");
  }
}

TYPED_TEST(Bodies, RmsNorm) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t rows : {0, 1, 5, 200}) {
    for (const std::int64_t width : {3, 17, 257}) {  // of width 1 the gradient is all cancellation
      const auto x = random_values<T>(rows * width, 1), dy = random_values<T>(rows * width, 2);
      const auto weight = random_values<T>(width, 3);
      std::vector<T> y(x.size()), dx(x.size());
      std::vector<A> rstd(static_cast<std::size_t>(rows)), dweight(static_cast<std::size_t>(width), A(1));
      std::vector<A> partial(static_cast<std::size_t>(norm_partials * width), A(77));
      bodies::run_rows(bodies::RmsNormRow<T>{x.data(), weight.data(), width, A(1e-6), y.data(), rstd.data()},
                       rows);
      bodies::run_rows(
          bodies::RmsNormBackwardRow<T>{dy.data(), x.data(), weight.data(), rstd.data(), width, dx.data()},
          rows);
      bodies::run_columns(bodies::RmsNormWeightColumn<T>{dy.data(), x.data(), rstd.data(), width}, rows,
                          width, partial.data(), dweight.data());
      const auto x64 = widen(x), dy64 = widen(dy), weight64 = widen(weight);
      auto y64 = zeros_like(y), dx64 = zeros_like(dx), rstd64 = zeros_like(rstd);
      std::vector<double> dweight64(dweight.size(), 1.0);
      reference::rms_norm_forward(x64.data(), weight64.data(), rows, width, 1e-6, y64.data(), rstd64.data());
      reference::rms_norm_backward(dy64.data(), x64.data(), weight64.data(), rstd64.data(), rows, width,
                                   dx64.data(), dweight64.data());
      expect_near(rstd, rstd64, 32 * unit_roundoff<A>(), "rstd");
      expect_near(y, y64, 8 * unit_roundoff<T>(), "y");
      expect_near(dx, dx64, 32 * unit_roundoff<T>(), "dx");
      expect_near(dweight, dweight64, 32 * unit_roundoff<T>(), "dweight");
    }
  }
}

TYPED_TEST(Bodies, Swiglu) {
  using T = TypeParam;
  constexpr std::int64_t rows = 3;
  for (const std::int64_t ffn : tests::test_widths()) {
    const auto gate_up = random_values<T>(rows * 2 * ffn, 1, 2.0), dy = random_values<T>(rows * ffn, 2);
    std::vector<T> y(dy.size()), dgate_up(gate_up.size());
    bodies::run_rows(bodies::SwigluRow<T>{gate_up.data(), ffn, y.data()}, rows);
    bodies::run_rows(bodies::SwigluBackwardRow<T>{dy.data(), gate_up.data(), ffn, dgate_up.data()}, rows);
    auto y64 = zeros_like(y), dgate_up64 = zeros_like(dgate_up);
    reference::swiglu_forward(widen(gate_up).data(), rows, ffn, y64.data());
    reference::swiglu_backward(widen(dy).data(), widen(gate_up).data(), rows, ffn, dgate_up64.data());
    expect_near(y, y64, 8 * unit_roundoff<T>(), "y");
    expect_near(dgate_up, dgate_up64, 8 * unit_roundoff<T>(), "dgate_up");
  }
}

TYPED_TEST(Bodies, RotaryAndHeadNorm) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t tokens : {0, 1, 7}) {
    const HeadsShape shape = tests::example_heads(tokens);
    const std::int64_t heads = shape.tokens * shape.heads;
    const auto x = random_values<T>(tokens * shape.token_stride, 1);
    const auto dy = random_values<T>(heads * shape.head_dim, 2), weight = random_values<T>(shape.head_dim, 3);
    const auto cos = random_values<A>(tokens * shape.head_dim / 2, 4);
    const auto sin = random_values<A>(tokens * shape.head_dim / 2, 5);
    const auto x64 = widen(x), dy64 = widen(dy), weight64 = widen(weight), cos64 = widen(cos),
               sin64 = widen(sin);
    for (const RotaryDirection direction : {RotaryDirection::forward, RotaryDirection::inverse}) {
      std::vector<T> y(dy.size());
      auto y64 = zeros_like(y);
      bodies::run_rows(bodies::RotaryHead<T>{x.data(), cos.data(), sin.data(), shape,
                                             A(direction == RotaryDirection::forward ? 1 : -1), y.data()},
                       heads);
      reference::rotary(x64.data(), cos64.data(), sin64.data(), shape, direction, y64.data());
      expect_near(y, y64, 8 * unit_roundoff<T>(), "rotary");
    }
    std::vector<T> y(dy.size()), dx(x.size());
    std::vector<A> rstd(static_cast<std::size_t>(heads)), dweight(weight.size(), A(1));
    std::vector<A> partial(static_cast<std::size_t>(norm_partials * shape.head_dim));
    bodies::run_rows(bodies::HeadNormRotary<T>{x.data(), weight.data(), cos.data(), sin.data(), shape,
                                               A(1e-6), y.data(), rstd.data()},
                     heads);
    bodies::run_rows(bodies::HeadNormRotaryBackward<T>{dy.data(), x.data(), weight.data(), cos.data(),
                                                       sin.data(), rstd.data(), shape, dx.data()},
                     heads);
    bodies::run_columns(
        bodies::HeadNormWeightColumn<T>{dy.data(), x.data(), cos.data(), sin.data(), rstd.data(), shape},
        heads, shape.head_dim, partial.data(), dweight.data());
    auto y64 = zeros_like(y), dx64 = zeros_like(dx), rstd64 = zeros_like(rstd);
    std::vector<double> dweight64(dweight.size(), 1.0);
    reference::head_norm_rotary_forward(x64.data(), weight64.data(), cos64.data(), sin64.data(), shape, 1e-6,
                                        y64.data(), rstd64.data());
    reference::head_norm_rotary_backward(dy64.data(), x64.data(), weight64.data(), cos64.data(), sin64.data(),
                                         rstd64.data(), shape, dx64.data(), dweight64.data());
    expect_near(rstd, rstd64, 32 * unit_roundoff<A>(), "rstd");
    expect_near(y, y64, 16 * unit_roundoff<T>(), "y");
    expect_near(dx, dx64, 32 * unit_roundoff<T>(), "dx");
    expect_near(dweight, dweight64, 32 * unit_roundoff<T>(), "dweight");
  }
}

TYPED_TEST(Bodies, SumOfSquaresAndNonfinite) {
  using T = TypeParam;
  for (const std::int64_t n : {0, 1, 1023, 1024, 1025, 300000}) {
    auto x = random_values<T>(n, 7);
    std::vector<double> partial(reduce_parts, 77.0);
    double sum = 0.0;
    bodies::run_rows(
        bodies::SquaresOfPart<T>{x.data(), n, bodies::ceil_divide(n, reduce_parts), partial.data()},
        reduce_parts);
    bodies::run_rows(bodies::SumOfParts{partial.data(), &sum}, 1);
    const auto x64 = widen(x);
    const double expected = reference::sum_of_squares(x64.data(), n);
    EXPECT_NEAR(sum, expected, 1e-12 * expected);
    std::int32_t found = 0;
    bodies::run_elements(bodies::NonfiniteElement<T>{x.data(), &found}, n);
    EXPECT_EQ(found, 0);
    if (n > 0) {
      x.back() = static_cast<T>(std::numeric_limits<float>::infinity());
      bodies::run_elements(bodies::NonfiniteElement<T>{x.data(), &found}, n);
      EXPECT_EQ(found, 1);
    }
  }
}

}  // namespace
}  // namespace athanor::kernels
