// The kernels on tensors: those of the CPU or of CUDA, by where the tensors lie. Layers call these, so that
// one code serves both.
//
// Legend: T element type (f32, f64, bf16, fp16), A its accumulation type (element.hpp), N rows, D width, F
// expert or feed-forward width, v vocabulary entries of this rank, K choices of a token. Tensors of one call
// lie on one device and are contiguous unless it says otherwise; outputs are allocated by the caller, indices
// are int64. On a GPU the work is queued on the tensors' current stream. No autograd.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "kernels/adamw.hpp"
#include "kernels/rotary.hpp"

namespace athanor::kernels {

/// cos and sin [..., C/2] of rotary positions, in A.
struct RotaryTables {
  at::Tensor cos, sin;
};

/// Of rows of logits over the whole vocabulary, each [N] in A.
struct SoftmaxRows {
  at::Tensor maximum;
  at::Tensor inverse_sum;  ///< 1 / sum of e^(logit - maximum); 0 in rows that are ignored
};

/// One range of an optimizer's state, each [n] and in A but for the copy.
struct AdamwTensors {
  at::Tensor master, exp_avg, exp_avg_sq, gradient;
  at::Tensor copy;  ///< receives the new master rounded to its type; undefined: not wanted
};

class TensorKernels {
 public:
  virtual ~TensorKernels() = default;

  /// norm.hpp: x, y [N, D] of any leading dimensions, weight [D], rstd [N] in A.
  virtual void rms_norm_forward(const at::Tensor& x, const at::Tensor& weight_D, double eps,
                                const at::Tensor& y, const at::Tensor& rstd_N) const = 0;
  /// dweight [D] in A is added to; undefined: not wanted.
  virtual void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight_D,
                                 const at::Tensor& rstd_N, const at::Tensor& dx,
                                 const at::Tensor& dweight_D) const = 0;

  /// activation.hpp: gate_up [N, 2F], y [N, F] of any leading dimensions.
  virtual void swiglu_forward(const at::Tensor& gate_up, const at::Tensor& y) const = 0;
  virtual void swiglu_backward(const at::Tensor& dy, const at::Tensor& gate_up,
                               const at::Tensor& dgate_up) const = 0;

  /// rotary.hpp: x [B, S, H, C] with dense heads and evenly spaced tokens; y dense.
  virtual void rotary(const at::Tensor& x_BSHC, const RotaryTables& tables, RotaryDirection direction,
                      const at::Tensor& y_BSHC) const = 0;
  /// rstd [B, S, H] in A.
  virtual void head_norm_rotary_forward(const at::Tensor& x_BSHC, const at::Tensor& weight_C,
                                        const RotaryTables& tables, double eps, const at::Tensor& y_BSHC,
                                        const at::Tensor& rstd_BSH) const = 0;
  /// dx has x's strides; dweight [C] in A is added to, undefined: not wanted.
  virtual void head_norm_rotary_backward(const at::Tensor& dy_BSHC, const at::Tensor& x_BSHC,
                                         const at::Tensor& weight_C, const RotaryTables& tables,
                                         const at::Tensor& rstd_BSH, const at::Tensor& dx_BSHC,
                                         const at::Tensor& dweight_C) const = 0;

  /// cross_entropy.hpp: logits [N, v], labels [N] as indices into the slice, statistics [N, 3] in A
  /// (SoftmaxStatistics).
  virtual void softmax_statistics(const at::Tensor& logits_Nv, const at::Tensor& labels_N,
                                  const at::Tensor& statistics_N3) const = 0;
  /// Statistics [tp, N, 3] of all slices, joined in rank order: `rows` of the whole vocabulary and the loss
  /// [N] of each row in A. Ignored rows (bool [N]) have loss 0.
  virtual void join_softmax_statistics(const at::Tensor& statistics_PN3, const at::Tensor& ignored_N,
                                       const SoftmaxRows& rows, const at::Tensor& loss_N) const = 0;
  /// In place: logits become `gradient_scale` times the gradient.
  virtual void cross_entropy_backward(const at::Tensor& logits_Nv, const at::Tensor& labels_N,
                                      const SoftmaxRows& rows, double gradient_scale) const = 0;

  /// permute.hpp: y[t] = sum over K of gates[t, j] x[slot[t, j]]. slot [T, K]; gates [T, K] in A, undefined:
  /// all 1.
  virtual void combine_rows(const at::Tensor& x, const at::Tensor& slot_TK, const at::Tensor& gates_TK,
                            const at::Tensor& y_TD) const = 0;
  /// x and dgates are both given or both undefined.
  virtual void combine_rows_backward(const at::Tensor& dy_TD, const at::Tensor& x, const at::Tensor& slot_TK,
                                     const at::Tensor& gates_TK, const at::Tensor& dx,
                                     const at::Tensor& dgates_TK) const = 0;
  /// out[row[i]] += x[i] in the order of i; out [rows, D] in A, negative rows are skipped.
  virtual void add_rows(const at::Tensor& x_ND, const at::Tensor& row_N, const at::Tensor& out) const = 0;

  /// adamw.hpp: in place.
  virtual void adamw_update(const AdamwTensors& range, const AdamwScalars& scalars) const = 0;
  /// reduce.hpp: sums of squares of x [n] in parts of `part_size` elements, f64.
  virtual void squares_of_parts(const at::Tensor& x, std::int64_t part_size,
                                const at::Tensor& sums) const = 0;
};

/// The kernels for `tensor`. Throws InternalError for a device that this program was not built for.
const TensorKernels& kernels_of(const at::Tensor& tensor);

/// For tests: while it lives, `kernels` serve all tensors of the process. One at a time.
class TensorKernelsScope {
 public:
  explicit TensorKernelsScope(const TensorKernels& kernels);
  ~TensorKernelsScope();
  TensorKernelsScope(const TensorKernelsScope&) = delete;
  TensorKernelsScope& operator=(const TensorKernelsScope&) = delete;
};

}  // namespace athanor::kernels
