#include "optim/detail/fp8_parts.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::optim::detail {
namespace {

constexpr std::int64_t scale_offset = kernels::fp8_scale_offset(block_elements);

kernels::Fp8Rows rows_of(std::int64_t elements) {
  return kernels::Fp8Rows::in_records(elements / block_elements, block_elements);
}

// Every record begins at a multiple of 4 bytes, and so do its scales.
float* scales_of(std::uint8_t* records) {
  return reinterpret_cast<float*>(records + scale_offset);
}
const float* scales_of(const std::uint8_t* records) {
  return reinterpret_cast<const float*>(records + scale_offset);
}

void check_records(const at::Tensor& records, std::int64_t elements) {
  ATHANOR_CHECK(elements % block_elements == 0 && records.is_contiguous() &&
                    records.scalar_type() == at::kByte &&
                    records.numel() == elements / block_elements * record_bytes,
                "{} bytes of records for {} elements", records.numel(), elements);
}

}  // namespace

void quantize_part(const at::Tensor& flat, std::int64_t first, std::int64_t count, base::Fp8Format format,
                   const at::Tensor& records, kernels::Fp8Counts& counts) {
  check_records(records, count);
  auto* codes = records.mutable_data_ptr<std::uint8_t>();
  kernels::cpu::quantize_fp8_blocks(flat.const_data_ptr<float>() + first, rows_of(count), format, codes,
                                    scales_of(codes), counts);
}

void sum_parts(const at::Tensor& records, std::int64_t ranks, base::Fp8Format format, const at::Tensor& sum) {
  const std::int64_t count = sum.numel();
  check_records(records, ranks * count);
  const auto* codes = records.const_data_ptr<std::uint8_t>();
  const kernels::Fp8Rows rows = rows_of(count);
  auto* out = sum.mutable_data_ptr<float>();
  kernels::cpu::dequantize_fp8_blocks(codes, scales_of(codes), rows, format, out);
  for (std::int64_t rank = 1; rank < ranks; ++rank) {
    const std::uint8_t* part = codes + rank * rows.rows * record_bytes;
    kernels::cpu::add_fp8_blocks(part, scales_of(part), rows, format, out);
  }
}

void dequantize_part(const at::Tensor& records, base::Fp8Format format, const at::Tensor& flat,
                     std::int64_t first, std::int64_t count) {
  check_records(records, count);
  const auto* codes = records.const_data_ptr<std::uint8_t>();
  kernels::cpu::dequantize_fp8_blocks(codes, scales_of(codes), rows_of(count), format,
                                      flat.mutable_data_ptr<float>() + first);
}

}  // namespace athanor::optim::detail
