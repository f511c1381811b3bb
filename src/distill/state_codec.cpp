#include <limits>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/codec.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {
namespace {

at::ScalarType fp8_type(base::Fp8Format format) {
  return format == base::Fp8Format::e4m3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2;
}

double fp8_largest(base::Fp8Format format) {
  return format == base::Fp8Format::e4m3 ? 448.0 : 57344.0;
}

std::int64_t num_blocks(std::int64_t width) {
  return (width + state_block - 1) / state_block;
}

/// [N, D] -> [N, blocks, state_block], the last block filled up with zeros.
at::Tensor in_blocks(const at::Tensor& rows_ND) {
  const std::int64_t blocks = num_blocks(rows_ND.size(1));
  return at::constant_pad_nd(rows_ND, {0, blocks * state_block - rows_ND.size(1)})
      .view({rows_ND.size(0), blocks, state_block});
}

EncodedStates encode_fp8(const at::Tensor& rows_ND, base::Fp8Format format) {
  const at::Tensor blocks_NBX = in_blocks(rows_ND.to(at::kFloat));
  const at::Tensor largest_NB = blocks_NBX.abs().amax(2);
  at::Tensor scale_NB = largest_NB / fp8_largest(format);
  // A block of zeros, or of numbers so small that their scale would be none.
  scale_NB.masked_fill_(scale_NB.lt(std::numeric_limits<float>::min()), 1.0);
  scale_NB.masked_fill_(largest_NB.isfinite().logical_not(), std::numeric_limits<double>::quiet_NaN());
  const at::Tensor data = (blocks_NBX / scale_NB.unsqueeze(2)).to(fp8_type(format)).view(at::kByte);
  return {data.flatten(1).narrow(1, 0, rows_ND.size(1)).contiguous(), scale_NB.contiguous()};
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
  const at::Tensor blocks_NBX =
      in_blocks(encoded.data_ND).view(fp8_type(format)).to(at::kFloat) * encoded.scale_NB.unsqueeze(2);
  return blocks_NBX.flatten(1).narrow(1, 0, encoded.data_ND.size(1)).to(type).contiguous();
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
