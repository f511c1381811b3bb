// Grouped products and FP8 products on a GPU against plain ones in f64.
#include "kernels/bodies/mx.hpp"
#include "kernels/grouped_blas.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::kernels {
namespace {

using tests::DeviceArray;
using tests::expect_near;
using tests::random_values;
using tests::unit_roundoff;
using tests::widen;

/// Operands of a grouped product, and the three products in f64.
template <typename T>
struct Groups {
  std::int64_t in, out, total;
  std::vector<std::int64_t> rows;
  std::vector<T> x, dy, w;
  std::vector<double> y64, dx64, dw64;

  Groups(std::int64_t in_width, std::int64_t out_width, std::vector<std::int64_t> group_rows)
      : in(in_width), out(out_width), total(0), rows(std::move(group_rows)) {
    for (const std::int64_t count : rows) {
      total += count;
    }
    x = random_values<T>(total * in, 1);
    dy = random_values<T>(total * out, 2);
    w = random_values<T>(static_cast<std::int64_t>(rows.size()) * in * out, 3);
    const auto x64 = widen(x), dy_64 = widen(dy), w64 = widen(w);
    y64.resize(dy.size());
    dx64.resize(x.size());
    dw64.resize(w.size());
    std::size_t row = 0;
    const auto d_count = static_cast<std::size_t>(in), f_count = static_cast<std::size_t>(out);
    for (std::size_t g = 0; g < rows.size(); ++g) {
      for (std::int64_t i = 0; i < rows[g]; ++i, ++row) {
        for (std::size_t f = 0; f < f_count; ++f) {
          for (std::size_t d = 0; d < d_count; ++d) {
            const std::size_t weight = (g * f_count + f) * d_count + d;
            y64[row * f_count + f] += x64[row * d_count + d] * w64[weight];
            dx64[row * d_count + d] += dy_64[row * f_count + f] * w64[weight];
            dw64[weight] += x64[row * d_count + d] * dy_64[row * f_count + f];
          }
        }
      }
    }
  }
  GroupedShape shape() const { return {in, out, rows}; }
};

template <typename T>
class GroupedBlasGpu : public tests::GpuKernels {
 protected:
  void expect_products(const Groups<T>& groups) {
    using A = accumulation_t<T>;
    const device::Stream borrowed = device::Stream::borrow(this->stream());
    const device::CublasHandle blas(borrowed);
    const auto x = this->put(groups.x), dy = this->put(groups.dy), w = this->put(groups.w);
    const DeviceArray<T> y(groups.dy.size()), dx(groups.x.size());
    const DeviceArray<std::byte> table(
        static_cast<std::size_t>(grouped_table_bytes(static_cast<std::int64_t>(groups.rows.size()))));
    const double allowed = 64 * unit_roundoff<T>();
    cuda::grouped_linear(blas, x.data(), w.data(), groups.shape(), table.data(), y.data());
    cuda::grouped_linear_data_gradient(blas, dy.data(), w.data(), groups.shape(), table.data(), dx.data());
    expect_near(this->get(y), groups.y64, allowed, "y");
    expect_near(this->get(dx), groups.dx64, allowed, "dx");
    const auto dw = this->put(std::vector<T>(groups.w.size(), static_cast<T>(7.0f)));
    cuda::grouped_linear_weight_gradient(blas, dy.data(), x.data(), groups.shape(), GemmMode::overwrite,
                                         table.data(), dw.data());
    expect_near(this->get(dw), groups.dw64, allowed, "dw");
    const auto sum = this->put(std::vector<A>(groups.w.size(), A(0.5)));
    cuda::grouped_linear_weight_gradient(blas, dy.data(), x.data(), groups.shape(), GemmMode::add,
                                         table.data(), sum.data());
    auto expected = groups.dw64;
    for (double& value : expected) {
      value += 0.5;
    }
    expect_near(this->get(sum), expected, 64 * unit_roundoff<A>(), "dw added in the accumulation type");
  }
};
TYPED_TEST_SUITE(GroupedBlasGpu, tests::ElementTypes);

TYPED_TEST(GroupedBlasGpu, AlignedGroupsWithEmptyOnes) {
  this->expect_products(Groups<TypeParam>(64, 32, {5, 0, 17, 1, 0, 40}));
}
TYPED_TEST(GroupedBlasGpu, OddWidths) {
  this->expect_products(Groups<TypeParam>(33, 17, {5, 0, 17, 1}));
}
TYPED_TEST(GroupedBlasGpu, ManyGroups) {
  this->expect_products(Groups<TypeParam>(16, 16, std::vector<std::int64_t>(300, 2)));
}
TYPED_TEST(GroupedBlasGpu, OneGroupAndNone) {
  this->expect_products(Groups<TypeParam>(16, 24, {9}));
  this->expect_products(Groups<TypeParam>(16, 24, {0, 0}));
  this->expect_products(Groups<TypeParam>(16, 24, {}));
}

class Fp8MatmulGpu : public tests::GpuKernels {
 protected:
  /// Quantised on the device; `numbers` is what the codes stand for.
  struct Operand {
    DeviceArray<std::uint8_t> codes;
    DeviceArray<std::byte> scales;
    std::vector<double> numbers;
  };
  Operand quantised(std::int64_t rows, std::int64_t width, std::uint64_t seed) {
    const Fp8Rows shape = Fp8Rows::apart(rows, width);
    const auto x = this->put(random_values<float>(rows * width, seed));
    const DeviceArray<float> scales(static_cast<std::size_t>(rows * shape.scale_stride)), numbers(x.size());
    Operand out{DeviceArray<std::uint8_t>(x.size()), DeviceArray<std::byte>(scales.size() * 4), {}};
    const auto counts = this->put(std::vector<Fp8Counts>(1));
    cuda::quantize_fp8_blocks(x.data(), shape, base::Fp8Format::e4m3, out.codes.data(), scales.data(),
                              counts.data(), stream());
    cuda::transpose_fp8_scales(scales.data(), rows, shape.scale_stride,
                               reinterpret_cast<float*>(out.scales.data()), stream());
    cuda::dequantize_fp8_blocks(out.codes.data(), scales.data(), shape, base::Fp8Format::e4m3, numbers.data(),
                                stream());
    out.numbers = tests::widen(this->get(numbers));
    return out;
  }
  Operand quantised_mx(std::int64_t rows, std::int64_t width, std::uint64_t seed) {
    const auto host_x = random_values<float>(rows * width, seed);
    const auto x = this->put(host_x);
    const auto scale_bytes = static_cast<std::size_t>(mx_scale_bytes(rows, width));
    Operand out{DeviceArray<std::uint8_t>(x.size()), this->put(std::vector<std::byte>(scale_bytes)), {}};
    cuda::quantize_mx_blocks(x.data(), rows, width, out.codes.data(),
                             reinterpret_cast<std::uint8_t*>(out.scales.data()), stream());
    std::vector<std::uint8_t> codes(x.size()), scales(scale_bytes);
    bodies::run_rows(bodies::QuantizeMxBlock<float>{host_x.data(), width, codes.data(), scales.data()},
                     rows * width / mx_block);
    tests::expect_same(this->get(out.codes), codes, "codes");
    const auto device_scales = this->get(out.scales);
    for (std::size_t i = 0; i < scale_bytes; ++i) {
      EXPECT_EQ(static_cast<std::uint8_t>(device_scales[i]), scales[i]);
    }
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i) / width, column = static_cast<std::int64_t>(i) % width;
      const auto place = bodies::mx_scale_place(row, column / mx_block, width / mx_block);
      out.numbers.push_back(std::ldexp(static_cast<double>(bodies::decode<bodies::E4m3>(codes[i])),
                                       scales[static_cast<std::size_t>(place)] - 127));
    }
    return out;
  }

  void expect_product(Fp8Scaling scaling, std::size_t rows, std::size_t in, std::size_t out, const Operand& x,
                      const Operand& w) {
    const device::CublasHandle blas(device::Stream::borrow(stream()));
    const DeviceArray<float> y(rows * out);
    cuda::fp8_matmul(blas, scaling, {x.codes.data(), x.scales.data()}, {w.codes.data(), w.scales.data()},
                     static_cast<std::int64_t>(rows), static_cast<std::int64_t>(in),
                     static_cast<std::int64_t>(out), y.data());
    std::vector<double> expected(rows * out);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t f = 0; f < out; ++f) {
        for (std::size_t d = 0; d < in; ++d) {
          expected[r * out + f] += x.numbers[r * in + d] * w.numbers[f * in + d];
        }
      }
    }
    expect_near(get(y), expected, 1e-3, "y");  // the tensor cores keep fewer bits within a block
  }
};

TEST_F(Fp8MatmulGpu, IsTheProductOfWhatTheCodesStandFor) {
  if (cuda::fp8_scaling() != Fp8Scaling::block_128) {
    GTEST_SKIP() << "this GPU multiplies no FP8 blocks of 128 (compute capability 9.0 does)";
  }
  expect_product(Fp8Scaling::block_128, 48, 256, 32, quantised(48, 256, 1), quantised(32, 256, 2));
}

TEST_F(Fp8MatmulGpu, IsTheProductOfWhatTheMxCodesStandFor) {
  const Operand x = quantised_mx(160, 288, 1), w = quantised_mx(64, 288, 2);
  if (cuda::fp8_scaling() != Fp8Scaling::mx) {
    GTEST_SKIP() << "this GPU multiplies no MX blocks (compute capability 10 does); they were quantised as "
                    "on the host";
  }
  expect_product(Fp8Scaling::mx, 160, 288, 64, x, w);
}

}  // namespace
}  // namespace athanor::kernels
