#include "kernels/cuda/addresses.hpp"

#include <algorithm>

#include "kernels/bodies/addresses.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

void write_addresses(const void* base, std::span<const std::int64_t> offset_bytes, const void** addresses,
                     device::StreamHandle stream) {
  constexpr std::size_t size = bodies::OffsetBatch::size;
  for (std::size_t first = 0; first < offset_bytes.size(); first += size) {
    const auto batch = offset_bytes.subspan(first, std::min(size, offset_bytes.size() - first));
    bodies::AddressElement element{base, {}, addresses + first};
    std::copy(batch.begin(), batch.end(), element.offsets.bytes);
    launch_elements(element, static_cast<std::int64_t>(batch.size()), stream, "write_addresses");
  }
}

void transpose_fp8_scales(const float* scales, std::int64_t rows, std::int64_t blocks, float* transposed,
                          device::StreamHandle stream) {
  launch_elements(bodies::TransposeElement{scales, rows, blocks, transposed}, rows * blocks, stream,
                  "transpose_fp8_scales");
}

}  // namespace athanor::kernels::cuda
