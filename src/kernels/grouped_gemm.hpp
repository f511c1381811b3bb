// Products of tensors by our kernel (gemm.hpp) or ATen's, whichever is faster for them: of two matrices, and
// of contiguous row ranges with one weight matrix each (the experts).
//
// Legend: R rows sorted by group, e groups, D input width, F output width. `rows` has e counts that sum to R;
// a count of 0 is ordinary. Outputs are contiguous tensors allocated by the caller, of the operands' type. No
// autograd.
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

#include "kernels/gemm.hpp"

namespace athanor::kernels {

/// out [m, n] (+)= a [m, k] b [k, n]. a and b are of one float type, each dense along one dimension (others
/// are copied); out is row-major, of that type or, for 16-bit operands, f32. No autograd.
void matmul_into(const at::Tensor& a, const at::Tensor& b, GemmMode mode, const at::Tensor& out);

/// The same as a new tensor of the operands' type.
at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);

/// y[rows of g] = x[rows of g] @ w[g]^T: x [R, D], w [e, F, D] -> y [R, F].
void grouped_linear(const at::Tensor& x_RD, const at::Tensor& w_eFD, std::span<const std::int64_t> rows,
                    const at::Tensor& y_RF);

/// dx[rows of g] = dy[rows of g] @ w[g]: dy [R, F], w [e, F, D] -> dx [R, D].
void grouped_linear_data_gradient(const at::Tensor& dy_RF, const at::Tensor& w_eFD,
                                  std::span<const std::int64_t> rows, const at::Tensor& dx_RD);

/// What happens to the weight gradient that is there already.
enum class WeightGradient { overwrite, accumulate };

/// dw[g] (+)= dy[rows of g]^T @ x[rows of g]: [e, F, D]. dw may be of the accumulation type of 16-bit
/// operands. A group without rows is zeroed (overwrite) or left as it is (accumulate).
void grouped_linear_weight_gradient(const at::Tensor& dy_RF, const at::Tensor& x_RD,
                                    std::span<const std::int64_t> rows, WeightGradient mode,
                                    const at::Tensor& dw_eFD);

}  // namespace athanor::kernels
