// The launches of launch_gpu_test.cpp, which is no source for nvcc.
#include "kernels/cuda/device_team.cuh"
#include "kernels/looped_launches.hpp"

namespace athanor::tests {

using kernels::cuda::LaunchShape;

template <int Lanes>
void launch_looped(const ReversedRow<Lanes>& body, std::int64_t rows, std::int64_t most_blocks,
                   device::StreamHandle stream) {
  using Body = ReversedRow<Lanes>;
  const auto launch = kernels::cuda::RowLaunch::of(rows, Lanes, body.scratch_bytes(), most_blocks);
  kernels::cuda::launch_kernel(kernels::cuda::row_kernel<Body>, kernels::cuda::row_kernel_shape<Body>(launch),
                               stream, "rows", body, launch);
}
template void launch_looped<bodies::warp_lanes>(const ReversedRow<bodies::warp_lanes>&, std::int64_t,
                                                std::int64_t, device::StreamHandle);
template void launch_looped<bodies::block_lanes>(const ReversedRow<bodies::block_lanes>&, std::int64_t,
                                                 std::int64_t, device::StreamHandle);

void launch_looped(const DoubledElement& body, std::int64_t n, std::int64_t most_blocks,
                   device::StreamHandle stream) {
  const LaunchShape shape = LaunchShape::over(n, kernels::cuda::block_threads, most_blocks);
  kernels::cuda::launch_kernel(kernels::cuda::element_kernel<DoubledElement>,
                               {shape.blocks, dim3(kernels::cuda::block_threads), 0}, stream, "elements",
                               body, shape);
}

void launch_looped(const ColumnOfNumbers& body, const bodies::ColumnShape& shape, std::int64_t most_blocks,
                   device::StreamHandle stream) {
  const LaunchShape tiles = LaunchShape::over(
      shape.parts() * bodies::ceil_divide(shape.columns, kernels::cuda::column_tile), 1, most_blocks);
  kernels::cuda::launch_kernel(kernels::cuda::column_kernel<ColumnOfNumbers>,
                               kernels::cuda::column_kernel_shape<ColumnOfNumbers>(tiles), stream, "columns",
                               body, shape, tiles);
}

}  // namespace athanor::tests
