#include <algorithm>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/codec.hpp"
#include "kernels/fp8.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {
namespace {

static_assert(state_block == kernels::fp8_block);

std::int64_t num_blocks(std::int64_t width) {
  return kernels::fp8_blocks(width);
}

EncodedStates encode_fp8(const at::Tensor& rows_ND, base::Fp8Format format) {
  const at::Tensor rows = rows_ND.to(at::kFloat).contiguous();
  const std::int64_t width = rows.size(1);
  EncodedStates encoded{at::empty(rows.sizes(), at::kByte),
                        at::empty({rows.size(0), num_blocks(width)}, at::kFloat)};
  kernels::Fp8Counts counts;
  kernels::cpu::quantize_fp8_blocks(
      rows.const_data_ptr<float>(), kernels::Fp8Rows::apart(rows.size(0), width), format,
      encoded.data_ND.mutable_data_ptr<std::uint8_t>(), encoded.scale_NB.mutable_data_ptr<float>(), counts);
  return encoded;
}

}  // namespace

EncodedStates encode_states(const at::Tensor& states, base::WireType wire, base::Fp8Format format) {
  const at::NoGradGuard no_grad;
  const at::Tensor rows_ND =
      states.detach().reshape({states.numel() / std::max<std::int64_t>(states.size(-1), 1), states.size(-1)});
  const at::ScalarType full = parallel::accumulation_type(states.scalar_type());
  ATHANOR_CHECK(full == at::kFloat || wire == base::WireType::full, "f64 states travel as they are");
  switch (wire) {
    case base::WireType::full:
      return {rows_ND.to(full).contiguous(), at::Tensor()};
    case base::WireType::bf16:
      return {rows_ND.to(at::kBFloat16).contiguous(), at::Tensor()};
    case base::WireType::fp8:
      return encode_fp8(rows_ND, format);
  }
  throw base::InternalError("unknown wire type {}", static_cast<int>(wire));
}

at::Tensor decode_states(const EncodedStates& encoded, base::Fp8Format format, at::ScalarType type) {
  const at::NoGradGuard no_grad;
  if (!encoded.scale_NB.defined()) {
    return encoded.data_ND.to(type);
  }
  const at::Tensor codes = encoded.data_ND.contiguous();
  const at::Tensor scales = encoded.scale_NB.contiguous();
  at::Tensor rows = at::empty(codes.sizes(), at::kFloat);
  kernels::cpu::dequantize_fp8_blocks(codes.const_data_ptr<std::uint8_t>(), scales.const_data_ptr<float>(),
                                      kernels::Fp8Rows::apart(codes.size(0), codes.size(1)), format,
                                      rows.mutable_data_ptr<float>());
  return rows.to(type);
}

std::int64_t state_bytes_per_token(std::int64_t width, base::WireType wire, std::int64_t full_bytes) {
  switch (wire) {
    case base::WireType::full:
      return width * full_bytes;
    case base::WireType::bf16:
      return width * 2;
    case base::WireType::fp8:
      return width + num_blocks(width) * 4;
  }
  throw base::InternalError("unknown wire type {}", static_cast<int>(wire));
}

std::int64_t attention_bytes_per_token(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                                       base::WireType wire, std::int64_t full_bytes) {
  return state_bytes_per_token((heads + kv_heads) * head_dim, wire, full_bytes);
}

std::int64_t head_bytes(std::int64_t vocab, std::int64_t width, std::int64_t element_bytes) {
  return vocab * width * element_bytes;
}

}  // namespace athanor::distill
