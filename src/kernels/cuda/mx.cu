#include "kernels/bodies/mx.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void quantize_mx_blocks(const T* x, std::int64_t rows, std::int64_t width, std::uint8_t* codes,
                        std::uint8_t* scales, device::StreamHandle stream) {
  launch_rows(bodies::QuantizeMxBlock<T>{x, width, codes, scales}, rows * (width / mx_block), stream,
              "quantize_mx_blocks");
}

#define ATHANOR_INSTANTIATE(T)                                                                            \
  template void quantize_mx_blocks<T>(const T*, std::int64_t, std::int64_t, std::uint8_t*, std::uint8_t*, \
                                      device::StreamHandle);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(c10::BFloat16)
ATHANOR_INSTANTIATE(c10::Half)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
