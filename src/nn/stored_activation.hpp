// Tensors kept for backward, as they are or in block-scaled FP8 (kernels/fp8.hpp).
//
// Backward counts the rounding as the identity: it takes the gradient of the unrounded forward pass with the
// rounded numbers in the place of those it kept. Forward never sees them.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "nn/activation_storage.hpp"

namespace athanor::nn {

/// A tensor kept for backward: two tensors, so that an autograd function saves them like any other, and
/// functions that need the same numbers share them.
struct StoredActivation {
  at::Tensor data;    ///< the tensor itself, or its codes: the same shape, of an FP8 type, contiguous
  at::Tensor scales;  ///< f32 [tokens, blocks of a token]; undefined when `data` is the tensor itself

  bool is_defined() const { return data.defined(); }
  bool is_fp8() const { return scales.defined(); }
  /// Codes and scales, or the tensor.
  std::int64_t bytes() const;
  /// The same numbers in another shape; tokens stay the first dimensions.
  StoredActivation view(at::IntArrayRef shape) const { return {data.view(shape), scales}; }
  /// Tokens [first, first + count) of [tokens, width] as a view.
  StoredActivation narrow(std::int64_t first, std::int64_t count) const;
};

/// `keep`, or nothing where gradients are off, so that a pass without backward rounds nothing. To be asked
/// outside of autograd functions, inside of which gradients are always off.
Keep keep_if_backward(const Keep& keep);

/// x as `keep` says. x is [tokens, width], [B, s, width] or [B, s, heads, width]: each number is rounded
/// once, in blocks of 128 of one token, so what a token becomes does not depend on its neighbours. A block
/// with a NaN or an infinity reads back as NaN, so that its gradients are not finite either. f32, bf16 and
/// fp16.
StoredActivation store_activation(const at::Tensor& x, const Keep& keep);

/// Room for rows [tokens, width] of `options` that store_rows() fills part by part.
StoredActivation allocate_rows(std::int64_t tokens, std::int64_t width, const at::TensorOptions& options,
                               const Keep& keep);
/// Rounds or copies x [tokens, width] to a part of such rows.
void store_rows(const StoredActivation& to, const at::Tensor& x);

/// The kept numbers in `type`, that of the tensor that was kept: the tensor itself, or a new contiguous one.
at::Tensor restore_activation(const StoredActivation& kept, at::ScalarType type);
/// The same into `scratch` [at least tokens, width], unless the tensor itself was kept: rows [0, tokens) of
/// it, or the tensor.
at::Tensor restore_rows(const StoredActivation& kept, const at::Tensor& scratch);

/// What this process has kept in FP8 since it started, for measuring: numbers rounded, and the bytes that
/// codes and scales took.
struct StoredTotals {
  std::int64_t numbers = 0;
  std::int64_t bytes = 0;
};
StoredTotals stored_totals();

}  // namespace athanor::nn
