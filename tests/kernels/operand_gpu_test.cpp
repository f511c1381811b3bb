// What is written for cuBLAS on a GPU (MX codes, scales in its order, operand addresses) against the host.
#include "kernels/bodies/addresses.hpp"
#include "kernels/bodies/mx.hpp"
#include "kernels/cuda/addresses.hpp"
#include "kernels/grouped_blas.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::kernels {
namespace {

using tests::DeviceArray;
using tests::expect_same;
using tests::random_values;

class OperandGpu : public tests::GpuKernels {
 protected:
  template <typename T>
  void expect_mx(std::int64_t rows, std::int64_t width) {
    const auto x = random_values<T>(rows * width, 1, 3.0);
    std::vector<std::uint8_t> codes(x.size()), scales(static_cast<std::size_t>(mx_scale_bytes(rows, width)));
    const auto device_x = put(x);
    const auto device_codes = put(codes), device_scales = put(scales);  // places of no block keep their zeros
    cuda::quantize_mx_blocks(device_x.data(), rows, width, device_codes.data(), device_scales.data(),
                             stream());
    bodies::run_rows(bodies::QuantizeMxBlock<T>{x.data(), width, codes.data(), scales.data()},
                     rows * (width / mx_block));
    expect_same(get(device_codes), codes, "codes");
    expect_same(get(device_scales), scales, "scales");
  }
};

TEST_F(OperandGpu, MxBlocks) {
  for (const std::int64_t rows : {0, 1, 130}) {
    for (const std::int64_t width : {32, 160}) {
      expect_mx<float>(rows, width);
      expect_mx<c10::BFloat16>(rows, width);
      expect_mx<c10::Half>(rows, width);
    }
  }
}

TEST_F(OperandGpu, TransposedScales) {
  const std::int64_t rows = 37, blocks = 9;
  const auto scales = random_values<float>(rows * blocks, 2);
  const auto device_scales = put(scales);
  const DeviceArray<float> transposed(scales.size());
  cuda::transpose_fp8_scales(device_scales.data(), rows, blocks, transposed.data(), stream());
  std::vector<float> expected(scales.size());
  bodies::run_elements(bodies::TransposeElement{scales.data(), rows, blocks, expected.data()}, rows * blocks);
  expect_same(get(transposed), expected, "scales");
  EXPECT_EQ(expected[1], scales[blocks]);
}

TEST_F(OperandGpu, AddressesOfMoreThanABatch) {
  std::vector<std::int64_t> offsets(2 * bodies::OffsetBatch::size + 3);
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    offsets[i] = static_cast<std::int64_t>(i * i % 1009 * 16);
  }
  const DeviceArray<std::byte> base(1009 * 16);
  const DeviceArray<const void*> addresses(offsets.size());
  cuda::write_addresses(base.data(), offsets, addresses.data(), stream());
  const std::vector<const void*> written = get(addresses);
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    ASSERT_EQ(written[i], base.data() + offsets[i]) << i;
  }
}

}  // namespace
}  // namespace athanor::kernels
