#include "kernels/bodies/fp8.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

namespace {

std::int64_t blocks_of(const Fp8Rows& rows) {
  return rows.rows * fp8_blocks(rows.width);
}

}  // namespace

template <typename T>
void quantize_fp8_blocks(const T* x, const Fp8Rows& rows, base::Fp8Format format, std::uint8_t* codes,
                         float* scales, Fp8Counts* counts, device::StreamHandle stream) {
  if (format == base::Fp8Format::e4m3) {
    launch_rows(bodies::QuantizeFp8Block<bodies::E4m3, T>{x, rows, codes, scales, counts}, blocks_of(rows),
                stream, "quantize_fp8_blocks");
  } else {
    launch_rows(bodies::QuantizeFp8Block<bodies::E5m2, T>{x, rows, codes, scales, counts}, blocks_of(rows),
                stream, "quantize_fp8_blocks");
  }
}

template <typename T>
void dequantize_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                           base::Fp8Format format, T* x, device::StreamHandle stream) {
  if (format == base::Fp8Format::e4m3) {
    launch_rows(bodies::DequantizeFp8Block<bodies::E4m3, T>{codes, scales, rows, x}, blocks_of(rows), stream,
                "dequantize_fp8_blocks");
  } else {
    launch_rows(bodies::DequantizeFp8Block<bodies::E5m2, T>{codes, scales, rows, x}, blocks_of(rows), stream,
                "dequantize_fp8_blocks");
  }
}

void add_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                    base::Fp8Format format, float* sum, device::StreamHandle stream) {
  if (format == base::Fp8Format::e4m3) {
    launch_rows(bodies::AddFp8Block<bodies::E4m3>{codes, scales, rows, sum}, blocks_of(rows), stream,
                "add_fp8_blocks");
  } else {
    launch_rows(bodies::AddFp8Block<bodies::E5m2>{codes, scales, rows, sum}, blocks_of(rows), stream,
                "add_fp8_blocks");
  }
}

#define ATHANOR_INSTANTIATE(T)                                                                               \
  template void quantize_fp8_blocks<T>(const T*, const Fp8Rows&, base::Fp8Format, std::uint8_t*, float*,     \
                                       Fp8Counts*, device::StreamHandle);                                    \
  template void dequantize_fp8_blocks<T>(const std::uint8_t*, const float*, const Fp8Rows&, base::Fp8Format, \
                                         T*, device::StreamHandle);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(c10::BFloat16)
ATHANOR_INSTANTIATE(c10::Half)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
