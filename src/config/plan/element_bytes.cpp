#include "config/plan/element_bytes.hpp"

#include "base/error.hpp"
#include "kernels/fp8.hpp"

namespace athanor::config {

std::int64_t compute_bytes(base::ComputeType type) {
  switch (type) {
    case base::ComputeType::f32:
      return 4;
    case base::ComputeType::bf16:
    case base::ComputeType::fp16:
      return 2;
    case base::ComputeType::f64:
      return 8;
  }
  throw base::InternalError("no such compute type");
}

std::int64_t accumulation_bytes(base::ComputeType type) {
  return type == base::ComputeType::f64 ? 8 : 4;
}

std::int64_t fp8_blocks(std::int64_t width) {
  return kernels::fp8_blocks(width);
}

std::int64_t wire_row_bytes(std::int64_t width, base::WireType wire, base::ComputeType compute) {
  switch (wire) {
    case base::WireType::full:
      return width * compute_bytes(compute);
    case base::WireType::bf16:
      return 2 * width;
    case base::WireType::fp8:
      return kernels::fp8_record_bytes(width);
  }
  throw base::InternalError("no such wire type");
}

std::int64_t wire_gradient_bytes(std::int64_t elements, base::WireType wire, base::ComputeType compute) {
  switch (wire) {
    case base::WireType::full:
      return elements * accumulation_bytes(compute);
    case base::WireType::bf16:
      return 2 * elements;
    case base::WireType::fp8:
      return elements / kernels::fp8_block * kernels::fp8_record_bytes(kernels::fp8_block);
  }
  throw base::InternalError("no such wire type");
}

}  // namespace athanor::config
