// The launches' loops: grids so small that teams and blocks take several rows, elements or tiles one after
// another, as they do on a GPU only where there are more than the largest grid has places.
#include "kernels/looped_launches.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::tests {
namespace {

std::vector<std::int64_t> numbers(std::int64_t count) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<std::int64_t>(i * 7919 % 10007);
  }
  return out;
}

class LaunchGpu : public GpuKernels {
 protected:
  template <int Lanes>
  void expect_rows(std::int64_t rows, std::int64_t width, std::int64_t most_blocks) {
    SCOPED_TRACE(std::to_string(rows) + " rows of " + std::to_string(width) + ", " + std::to_string(Lanes) +
                 " lanes, " + std::to_string(most_blocks) + " blocks");
    const auto x = numbers(rows * width);
    std::vector<double> sums(static_cast<std::size_t>(rows));
    std::vector<std::int64_t> out(x.size());
    bodies::run_rows(ReversedRow<Lanes>{x.data(), width, sums.data(), out.data()}, rows);
    const auto device_x = put(x);
    const DeviceArray<double> device_sums(sums.size());
    const DeviceArray<std::int64_t> device_out(out.size());
    const ReversedRow<Lanes> body{device_x.data(), width, device_sums.data(), device_out.data()};
    launch_looped(body, rows, most_blocks, stream());
    expect_same(get(device_sums), sums, "sums");
    expect_same(get(device_out), out, "out");
  }
};

TEST_F(LaunchGpu, TeamsTakeSeveralRows) {
  for (const std::int64_t most_blocks : {1, 3}) {
    for (const std::int64_t width : {1, 31, 257, 600}) {
      expect_rows<bodies::warp_lanes>(50, width, most_blocks);
      expect_rows<bodies::block_lanes>(7, width, most_blocks);
    }
    expect_rows<bodies::block_lanes>(7, 5120, most_blocks);  // all shared memory that there is
    expect_rows<bodies::warp_lanes>(50, 5120, most_blocks);
  }
}

TEST_F(LaunchGpu, PlacesTakeSeveralElements) {
  const auto x = numbers(2000);
  std::vector<std::int64_t> expected(x.size());
  bodies::run_elements(DoubledElement{x.data(), expected.data()}, 2000);
  const auto device_x = put(x);
  const DeviceArray<std::int64_t> out(x.size());
  launch_looped(DoubledElement{device_x.data(), out.data()}, 2000, 3, stream());
  expect_same(get(out), expected, "out");
}

TEST_F(LaunchGpu, BlocksTakeSeveralTilesOfColumns) {
  const bodies::ColumnShape shape{130, 100, 50};
  const auto x = numbers(shape.rows * shape.columns);
  std::vector<std::int64_t> expected(static_cast<std::size_t>(shape.parts() * shape.columns));
  bodies::run_column_step(ColumnOfNumbers{x.data(), shape.columns, expected.data()}, shape);
  const auto device_x = put(x);
  const DeviceArray<std::int64_t> out(expected.size());
  const ColumnOfNumbers body{device_x.data(), shape.columns, out.data()};
  launch_looped(body, shape, 5, stream());
  expect_same(get(out), expected, "sums");
}

}  // namespace
}  // namespace athanor::tests
