// FP8 blocks, AdamW, conversion and reductions on a GPU against the host: the reference where bits are
// defined, else the same bodies run on the host.
#include "kernels/bodies/adamw.hpp"
#include "kernels/bodies/reduce.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::kernels {
namespace {

using tests::expect_same;
using tests::random_values;

class FlatGpu : public tests::GpuKernels {
 protected:
  template <typename T>
  void expect_fp8(const std::vector<T>& x, const Fp8Rows& rows, base::Fp8Format format) {
    std::vector<float> x32(x.size());
    std::transform(x.begin(), x.end(), x32.begin(), [](T value) { return bodies::load(value); });
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows.rows * rows.code_stride));
    std::vector<float> scales(static_cast<std::size_t>(rows.rows * rows.scale_stride)), back32(x.size());
    const auto device_x = put(x);
    const auto device_codes = put(codes);
    const auto device_scales = put(scales);
    const auto counts = put(std::vector<Fp8Counts>{Fp8Counts{.underflow = 5, .nonfinite = 7}});
    const tests::DeviceArray<T> device_back(x.size());
    Fp8Counts expected_counts{.underflow = 5, .nonfinite = 7};
    reference::quantize_fp8_blocks(x32.data(), rows, format, codes.data(), scales.data(), expected_counts);
    reference::dequantize_fp8_blocks(codes.data(), scales.data(), rows, format, back32.data());
    cuda::quantize_fp8_blocks(device_x.data(), rows, format, device_codes.data(), device_scales.data(),
                              counts.data(), stream());
    cuda::dequantize_fp8_blocks(device_codes.data(), device_scales.data(), rows, format, device_back.data(),
                                stream());
    expect_same(get(device_codes), codes, "codes");
    expect_same(get(device_scales), scales, "scales");
    EXPECT_EQ(get(counts)[0].underflow, expected_counts.underflow);
    EXPECT_EQ(get(counts)[0].nonfinite, expected_counts.nonfinite);
    std::vector<T> expected_back(x.size());
    std::transform(back32.begin(), back32.end(), expected_back.begin(),
                   [](float value) { return bodies::store<T>(value); });
    expect_same(get(device_back), expected_back, "numbers");

    std::vector<float> sum(x.size(), 0.3f);
    const auto device_sum = put(sum);
    cuda::add_fp8_blocks(device_codes.data(), device_scales.data(), rows, format, device_sum.data(),
                         stream());
    bodies::run_rows(bodies::AddFp8Block<bodies::E4m3>{codes.data(), scales.data(), rows, sum.data()},
                     format == base::Fp8Format::e4m3 ? rows.rows * fp8_blocks(rows.width) : 0);
    if (format == base::Fp8Format::e4m3) {
      expect_same(get(device_sum), sum, "sum");
    }
  }

  template <typename T>
  void expect_fp8_of_type() {
    for (const base::Fp8Format format : {base::Fp8Format::e4m3, base::Fp8Format::e5m2}) {
      for (const std::int64_t width : {0, 1, 127, 128, 129, 1000}) {
        for (const std::int64_t rows : {0, 1, 37}) {
          SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(width));
          auto x = random_values<T>(rows * width, 11, 3.0);
          for (std::size_t i = 0; i < x.size(); i += 7) {
            x[i] = static_cast<T>(static_cast<float>(x[i]) * 1e-4f);
          }
          for (std::size_t i = 500; i < x.size(); i += 1000) {
            x[i] = static_cast<T>(i % 2000 == 500 ? std::numeric_limits<float>::quiet_NaN()
                                                  : std::numeric_limits<float>::infinity());
          }
          expect_fp8(x, Fp8Rows::apart(rows, width), format);
        }
      }
    }
  }

  template <typename T>
  void expect_reductions() {
    for (const std::int64_t n : {0, 1, 1023, 1025, 1000003}) {
      auto x = random_values<T>(n, 7);
      std::vector<double> partial(reduce_parts);
      double sum = 0.0;
      bodies::run_rows(
          bodies::SquaresOfPart<T>{x.data(), n, bodies::ceil_divide(n, reduce_parts), partial.data()},
          reduce_parts);
      bodies::run_rows(bodies::SumOfParts{partial.data(), &sum}, 1);
      const auto device_x = put(x);
      const tests::DeviceArray<double> device_partial(reduce_parts), device_sum(1);
      const auto found = put(std::vector<std::int32_t>{0});
      cuda::sum_of_squares(device_x.data(), n, device_partial.data(), device_sum.data(), stream());
      cuda::find_nonfinite(device_x.data(), n, found.data(), stream());
      EXPECT_EQ(get(device_sum)[0], sum);
      EXPECT_EQ(get(found)[0], 0);
      if (n > 0) {
        x[static_cast<std::size_t>(n - 1)] = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
        const auto bad = put(x);
        cuda::find_nonfinite(bad.data(), n, found.data(), stream());
        EXPECT_EQ(get(found)[0], 1);
      }
    }
  }

  template <typename A, typename C>
  void expect_adamw(std::int64_t n) {
    const AdamwScalars scalars = {.lr = 1e-2,
                                  .beta1 = 0.9,
                                  .beta2 = 0.95,
                                  .eps = 1e-8,
                                  .weight_decay = 0.1,
                                  .bias_correction1 = 0.19,
                                  .bias_correction2 = 0.0975,
                                  .gradient_scale = 0.25};
    auto master = random_values<A>(n, 1), m = random_values<A>(n, 2), v = random_values<A>(n, 3);
    const auto grad = random_values<A>(n, 4);
    std::transform(v.begin(), v.end(), v.begin(), [](A value) { return value * value; });
    const auto device_master = put(master), device_m = put(m), device_v = put(v), device_grad = put(grad);
    const tests::DeviceArray<C> device_copy(static_cast<std::size_t>(n)),
        converted(static_cast<std::size_t>(n));
    std::vector<C> copy(static_cast<std::size_t>(n));
    cuda::adamw_update(device_master.data(), device_m.data(), device_v.data(), device_grad.data(), n, scalars,
                       device_copy.data(), stream());
    cuda::convert_elements(device_master.data(), n, converted.data(), stream());
    bodies::run_elements(bodies::AdamwElement<A, C>{master.data(), m.data(), v.data(), grad.data(),
                                                    bodies::AdamwFactors<A>(scalars), copy.data()},
                         n);
    expect_same(get(device_master), master, "master");
    expect_same(get(device_m), m, "m");
    expect_same(get(device_v), v, "v");
    expect_same(get(device_copy), copy, "copy");
    expect_same(get(converted), copy, "converted");
  }
};

TEST_F(FlatGpu, Fp8BlocksOfF32) {
  expect_fp8_of_type<float>();
}
TEST_F(FlatGpu, Fp8BlocksOfBf16) {
  expect_fp8_of_type<c10::BFloat16>();
}
TEST_F(FlatGpu, Fp8BlocksOfFp16) {
  expect_fp8_of_type<c10::Half>();
}

TEST_F(FlatGpu, Fp8Records) {
  const auto x = random_values<float>(6 * 300, 9);
  Fp8Rows rows = Fp8Rows::apart(6, 300);
  rows.code_stride = 304;
  rows.scale_stride = 5;
  expect_fp8(x, rows, base::Fp8Format::e4m3);
}

TEST_F(FlatGpu, EveryBf16IsQuantisedAsByTheReference) {
  for (const base::Fp8Format format : {base::Fp8Format::e4m3, base::Fp8Format::e5m2}) {
    std::vector<c10::BFloat16> consecutive(65536), mixed(65536);
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      const c10::BFloat16 value(static_cast<std::uint16_t>(bits), c10::BFloat16::from_bits());
      consecutive[bits] = value;
      mixed[bits * 40503u % 65536u] = value;  // an odd factor: a permutation
    }
    expect_fp8(consecutive, Fp8Rows::apart(1, 65536), format);
    expect_fp8(mixed, Fp8Rows::apart(512, 128), format);
  }
}

TEST_F(FlatGpu, EveryCodeReadsBackAsByTheReference) {
  std::vector<std::uint8_t> codes(256);
  for (std::size_t i = 0; i < 256; ++i) {
    codes[i] = static_cast<std::uint8_t>(i);
  }
  const std::vector<float> scales = {1.0f, 0x1p-3f};
  const Fp8Rows rows = Fp8Rows::apart(1, 256);
  for (const base::Fp8Format format : {base::Fp8Format::e4m3, base::Fp8Format::e5m2}) {
    std::vector<float> expected(256);
    reference::dequantize_fp8_blocks(codes.data(), scales.data(), rows, format, expected.data());
    const auto device_codes = put(codes);
    const auto device_scales = put(scales);
    const tests::DeviceArray<float> back(256);
    cuda::dequantize_fp8_blocks(device_codes.data(), device_scales.data(), rows, format, back.data(),
                                stream());
    expect_same(get(back), expected, "numbers");
  }
}

TEST_F(FlatGpu, Adamw) {
  for (const std::int64_t n : {0, 1, 255, 100003}) {
    expect_adamw<float, float>(n);
    expect_adamw<float, c10::BFloat16>(n);
    expect_adamw<float, c10::Half>(n);
    expect_adamw<double, double>(n);
  }
}

TEST_F(FlatGpu, AdamwWithoutACopyKeepsNonFiniteGradientsVisible) {
  const auto master = put(std::vector<float>(20, 1.0f)), m = put(std::vector<float>(20)),
             v = put(std::vector<float>(20));
  std::vector<float> grad(20, 1.0f);
  grad[3] = std::numeric_limits<float>::infinity();
  grad[19] = std::numeric_limits<float>::quiet_NaN();
  const auto device_grad = put(grad);
  cuda::adamw_update(master.data(), m.data(), v.data(), device_grad.data(), 20, AdamwScalars{.lr = 0.1},
                     static_cast<float*>(nullptr), stream());
  const auto updated = get(master);
  EXPECT_FALSE(std::isfinite(updated[3]));
  EXPECT_FALSE(std::isfinite(updated[19]));
  EXPECT_TRUE(std::isfinite(updated[4]));
}

TEST_F(FlatGpu, Reductions) {
  expect_reductions<float>();
  expect_reductions<double>();
  expect_reductions<c10::BFloat16>();
  expect_reductions<c10::Half>();
}

}  // namespace
}  // namespace athanor::kernels
