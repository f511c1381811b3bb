// Elementwise reductions of ranks' contributions in rank order: the arithmetic behind contract 6.
#pragma once

#include <span>

#include <ATen/core/Tensor.h>

#include "parallel/collectives/backend.hpp"

namespace athanor::parallel {

/// output[i] = parts[0][i] (op) parts[1][i] (op) ..., in this order, element by element, in the accumulation
/// type of the parts (f32 for f32, bf16, fp16; f64 for f64), rounded once to output's type. Parts are
/// contiguous, of one float type and of output's number of elements; output is contiguous, of the parts' or
/// the accumulation type, and may be one of the parts. max and min propagate NaN. Throws InternalError for
/// other types.
void reduce_in_rank_order(at::Tensor& output, std::span<const at::Tensor> parts, ReduceOp op);

namespace detail {
/// The same with operations on whole tensors, for those of a GPU; NaNs and signs of zeros may differ.
void reduce_by_tensor_ops(at::Tensor& output, std::span<const at::Tensor> parts, ReduceOp op);
}  // namespace detail

}  // namespace athanor::parallel
