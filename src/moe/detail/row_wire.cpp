#include "moe/detail/row_wire.hpp"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "base/error.hpp"
#include "kernels/fp8.hpp"
#include "moe/detail/rows.hpp"

namespace athanor::moe::detail {
namespace {

// Records begin at multiples of 4 bytes, and so do their scales.
float* scales_of(std::uint8_t* records, std::int64_t width) {
  return reinterpret_cast<float*>(records + kernels::fp8_scale_offset(width));
}
const float* scales_of(const std::uint8_t* records, std::int64_t width) {
  return reinterpret_cast<const float*>(records + kernels::fp8_scale_offset(width));
}

/// Calls function(T()) for the element type of rows that are rounded on the wire.
template <typename Function>
void for_element_of(const at::Tensor& rows, const Function& function) {
  ATHANOR_CHECK(rows.scalar_type() != at::kDouble, "f64 rows travel as they are");
  AT_DISPATCH_SWITCH(rows.scalar_type(), "row_wire",
                     AT_DISPATCH_CASE(at::kFloat, [&] { function(scalar_t()); })
                         AT_DISPATCH_CASE(at::kBFloat16, [&] { function(scalar_t()); })
                             AT_DISPATCH_CASE(at::kHalf, [&] { function(scalar_t()); }));
}

at::Tensor pack_fp8(const at::Tensor& rows, base::Fp8Format format, parallel::TrafficCounters& traffic) {
  ATHANOR_CHECK(rows.is_cpu(), "rows on {} do not travel in FP8", rows.device().str());
  const std::int64_t width = rows.size(1);
  at::Tensor packed = at::empty({rows.size(0), kernels::fp8_record_bytes(width)}, at::kByte);
  auto* codes = packed.mutable_data_ptr<std::uint8_t>();
  kernels::Fp8Counts counts;
  for_element_of(rows, [&]<typename T>(T) {
    kernels::cpu::quantize_fp8_blocks(rows.const_data_ptr<T>(),
                                      kernels::Fp8Rows::in_records(rows.size(0), width), format, codes,
                                      scales_of(codes, width), counts);
  });
  traffic.add_losses({counts.underflow, counts.nonfinite});
  return packed;
}

void unpack_fp8(const at::Tensor& packed, base::Fp8Format format, const at::Tensor& to,
                std::span<const std::int64_t> to_row) {
  const std::int64_t width = to.size(1);
  const kernels::Fp8Rows one = kernels::Fp8Rows::in_records(1, width);
  const auto* records = packed.const_data_ptr<std::uint8_t>();
  for_element_of(to, [&]<typename T>(T) {
    T* target = to.mutable_data_ptr<T>();
    for (std::int64_t i = 0; i < packed.size(0); ++i) {
      const std::uint8_t* record = records + i * one.code_stride;
      const std::int64_t row = to_row.empty() ? i : to_row[static_cast<std::size_t>(i)];
      kernels::cpu::dequantize_fp8_blocks(record, scales_of(record, width), one, format,
                                          target + row * width);
    }
  });
}

}  // namespace

bool travels_as_is(base::WireType wire, at::ScalarType type) {
  return wire == base::WireType::full || (wire == base::WireType::bf16 && type == at::kBFloat16);
}

at::Tensor pack_rows(const at::Tensor& rows, base::WireType wire, base::Fp8Format format,
                     parallel::TrafficCounters& traffic) {
  ATHANOR_CHECK(rows.dim() == 2 && rows.is_contiguous() && rows.scalar_type() != at::kDouble,
                "rows to round must be contiguous [n, D] of at most 32 bits");
  if (travels_as_is(wire, rows.scalar_type())) {
    return rows;
  }
  return wire == base::WireType::bf16 ? rows.to(at::kBFloat16) : pack_fp8(rows, format, traffic);
}

std::int64_t packed_row_bytes(std::int64_t width, base::WireType wire, at::ScalarType type) {
  if (travels_as_is(wire, type)) {
    return width * static_cast<std::int64_t>(at::elementSize(type));
  }
  return wire == base::WireType::bf16 ? 2 * width : kernels::fp8_record_bytes(width);
}

void unpack_rows(const at::Tensor& packed, base::Fp8Format format, const at::Tensor& to,
                 std::span<const std::int64_t> to_row) {
  if (packed.scalar_type() == at::kByte) {
    unpack_fp8(packed, format, to, to_row);
    return;
  }
  if (to_row.empty()) {
    to.narrow(0, 0, packed.size(0)).copy_(packed);
    return;
  }
  copy_rows(to, to_row, packed.to(to.scalar_type()), {});
}

}  // namespace athanor::moe::detail
