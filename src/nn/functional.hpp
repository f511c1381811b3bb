// Dense building blocks as differentiable functions with hand-written backward passes.
//
// Legend: N rows (tokens), D input width, F output width, H query heads, G key/value heads, C head width.
// All accept f32, bf16, fp16, f64; statistics are in the accumulation type (f64 for f64, else f32).
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

#include "kernels/tensor_kernels.hpp"
#include "nn/stored_activation.hpp"
#include "nn/weight.hpp"

namespace athanor::nn {

/// x @ w^T for x of any leading shape [..., D] and w [..., D], whose leading dimensions (if several) are
/// flattened to F: returns [..., F]. The weight gradient goes to the weight's sink, and is that of `kept_x`,
/// x as it is kept for backward (undefined: x itself).
at::Tensor linear(const at::Tensor& x, const Weight& weight_FD, const StoredActivation& kept_x = {});

/// Root-mean-square normalisation over the last dimension, times weight [D]: the order of operations of
/// Hugging Face's Qwen3 (normalise in the accumulation type, cast to x's type, multiply). Zhang & Sennrich
/// 2019, eq. 4. Keeps x for backward.
at::Tensor rms_norm(const at::Tensor& x, const Weight& weight_D, double eps, const Keep& keep = {});

/// silu(gate) * up for gate_up [..., 2F] (gate first). Keeps gate_up for backward. Shazeer 2020.
at::Tensor swiglu(const at::Tensor& gate_up, const Keep& keep = {});

using kernels::RotaryTables;

/// Tables for positions [...], which are on the CPU: [..., C/2] in `dtype`, on `device`. Su et al. 2021; the
/// half-split layout of Hugging Face.
RotaryTables rotary_tables(const at::Tensor& positions, std::int64_t head_dim, double theta,
                           at::ScalarType dtype, at::Device device = at::kCPU);
/// Rotates x [B, S, H, C] by tables [B, S, C/2].
at::Tensor apply_rotary(const at::Tensor& x_BSHC, const RotaryTables& tables);
/// apply_rotary(rms_norm(x)) over each head in one pass. weight_C.tensor undefined: no norm. Keeps x for
/// backward (without a norm nothing).
at::Tensor head_norm_rotary(const at::Tensor& x_BSHC, const Weight& weight_C, double eps,
                            const RotaryTables& tables, const Keep& keep = {});

/// Inverted dropout whose mask is Philox(seed, dropout, site, (global sample, position), channel): the same
/// on every layout and in recomputation. x [B, s, D]; `first_position` is the position of x's first column.
struct DropoutOptions {
  double probability = 0.0;
  std::uint64_t seed = 0;
  std::string site;
};
at::Tensor dropout(const at::Tensor& x_BsD, const at::Tensor& sample_ids_B, std::int64_t first_position,
                   const DropoutOptions& options);

}  // namespace athanor::nn
