#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "base/error.hpp"
#include "kernels/tensor_kernels.hpp"
#include "nn/detail/function_context.hpp"
#include "nn/functional.hpp"

namespace athanor::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

void check_tables(const at::Tensor& x_BSHC, const at::Tensor& cos, const at::Tensor& sin) {
  ATHANOR_CHECK(x_BSHC.dim() == 4 && x_BSHC.size(3) % 2 == 0 && cos.is_contiguous() && sin.is_contiguous() &&
                    cos.numel() == x_BSHC.size(0) * x_BSHC.size(1) * (x_BSHC.size(3) / 2) &&
                    sin.numel() == cos.numel() &&
                    cos.scalar_type() == parallel::accumulation_type(x_BSHC.scalar_type()) &&
                    sin.scalar_type() == cos.scalar_type(),
                "rotary tables do not fit x [B, S, H, C] (they must be contiguous [B, S, C/2] in the "
                "accumulation type)");
}

at::Tensor rotated(const at::Tensor& x_in, const at::Tensor& cos, const at::Tensor& sin,
                   kernels::RotaryDirection direction) {
  const at::Tensor x = detail::with_dense_heads(x_in);
  const at::Tensor y = at::empty(x.sizes(), x.options());
  kernels::kernels_of(x).rotary(x, {cos, sin}, direction, y);
  return y;
}

struct Rotary : Function<Rotary> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    check_tables(x, cos, sin);
    ctx->save_for_backward({cos, sin});
    return rotated(x, cos, sin, kernels::RotaryDirection::forward);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    return {rotated(grads[0], saved[0], saved[1], kernels::RotaryDirection::inverse), at::Tensor(),
            at::Tensor()};
  }
};

struct HeadNormRotary : Function<HeadNormRotary> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in, const at::Tensor& weight,
                            const at::Tensor& cos, const at::Tensor& sin, double eps,
                            parallel::GradAccumulator* sink, const Keep& keep) {
    check_tables(x_in, cos, sin);
    ATHANOR_CHECK(weight.numel() == x_in.size(3), "a head norm of {} weights meets heads of width {}",
                  weight.numel(), x_in.size(3));
    const at::Tensor x = detail::with_dense_heads(x_in);
    const at::Tensor y = at::empty(x.sizes(), x.options());
    const at::Tensor rstd = at::empty({x.size(0), x.size(1), x.size(2)}, cos.options());
    kernels::kernels_of(x).head_norm_rotary_forward(x, weight, {cos, sin}, eps, y, rstd);
    const StoredActivation kept = store_activation(x, keep);
    ctx->save_for_backward({kept.data, weight, cos, sin, rstd, kept.scales});
    detail::save_sink(ctx, sink);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor& rstd = saved[4];
    const at::Tensor x = restore_activation({saved[0], saved[5]}, weight.scalar_type());
    const at::Tensor dy = grads[0].contiguous();
    // The kernel writes dx at x's own token stride: a view of a buffer that is as wide as x's rows.
    const at::Tensor wide = at::empty({x.size(0), x.size(1), x.stride(1)}, x.options());
    const at::Tensor dx = wide.narrow(2, 0, x.size(2) * x.size(3)).view(x.sizes());
    const bool wants_weight = ctx->needs_input_grad(1);
    const at::Tensor dweight = wants_weight ? at::zeros({x.size(3)}, rstd.options()) : at::Tensor();
    kernels::kernels_of(x).head_norm_rotary_backward(dy, x, weight, {saved[2], saved[3]}, rstd, dx, dweight);
    return {dx,
            wants_weight ? detail::deliver_weight_gradient(detail::saved_sink(ctx), dweight, weight)
                         : at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }
};

}  // namespace

RotaryTables rotary_tables(const at::Tensor& positions, std::int64_t head_dim, double theta,
                           at::ScalarType dtype, at::Device device) {
  // Frequencies in f64: the same angles in every compute type, and exact for long contexts.
  at::Tensor frequencies = at::empty({head_dim / 2}, at::kDouble);
  for (std::int64_t i = 0; i < head_dim / 2; ++i) {
    frequencies.data_ptr<double>()[i] =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  }
  const at::Tensor angles = positions.to(at::kDouble).unsqueeze(-1) * frequencies;
  return {angles.cos().to(device, dtype), angles.sin().to(device, dtype)};
}

at::Tensor apply_rotary(const at::Tensor& x_BSHC, const RotaryTables& tables) {
  return Rotary::apply(x_BSHC, tables.cos, tables.sin);
}

at::Tensor head_norm_rotary(const at::Tensor& x_BSHC, const Weight& weight_C, double eps,
                            const RotaryTables& tables, const Keep& keep) {
  if (!weight_C.tensor.defined()) {
    return apply_rotary(x_BSHC, tables);
  }
  return HeadNormRotary::apply(x_BSHC, weight_C.tensor, tables.cos, tables.sin, eps, weight_C.sink,
                               keep_if_backward(keep));
}

}  // namespace athanor::nn
