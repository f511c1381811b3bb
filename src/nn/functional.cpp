#include "nn/functional.hpp"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "kernels/grouped_gemm.hpp"
#include "kernels/tensor_kernels.hpp"
#include "nn/detail/function_context.hpp"

namespace athanor::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// [..., D] as rows [N, D].
at::Tensor rows_of(const at::Tensor& x) {
  std::int64_t rows = 1;
  for (std::int64_t dim = 0; dim + 1 < x.dim(); ++dim) {
    rows *= x.size(dim);
  }
  return x.reshape({rows, x.size(-1)});  // not -1: the width may be 0
}

std::vector<std::int64_t> with_last_dim(const at::Tensor& x, std::int64_t last) {
  std::vector<std::int64_t> sizes = x.sizes().vec();
  sizes.back() = last;
  return sizes;
}

struct Linear : Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            parallel::GradAccumulator* sink, const StoredActivation& kept_x) {
    const at::Tensor weight_FD = rows_of(weight);
    ATHANOR_CHECK(x.size(-1) == weight_FD.size(1), "linear of width {} was given rows of width {}",
                  weight_FD.size(1), x.size(-1));
    ctx->save_for_backward({kept_x.data, weight, kept_x.scales});
    detail::save_sink(ctx, sink);
    return kernels::matmul(rows_of(x), weight_FD.t()).view(with_last_dim(x, weight_FD.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const base::ScopedSpan span(base::SpanKind::compute, "linear backward");
    const variable_list saved = ctx->get_saved_variables();
    const StoredActivation kept_x{saved[0], saved[2]};
    const at::Tensor& weight = saved[1];
    const at::Tensor dy_NF = rows_of(grads[0]);
    at::Tensor dx;
    at::Tensor dweight;
    if (ctx->needs_input_grad(0)) {
      dx = kernels::matmul(dy_NF, rows_of(weight)).view(kept_x.data.sizes());
    }
    if (ctx->needs_input_grad(1)) {
      const at::Tensor x = restore_activation(kept_x, weight.scalar_type());
      if (parallel::GradAccumulator* sink = detail::saved_sink(ctx)) {
        detail::add_weight_product(*sink, dy_NF.t(), rows_of(x));
      } else {
        dweight = kernels::matmul(dy_NF.t(), rows_of(x)).view(weight.sizes());
      }
    }
    return {dx, dweight, at::Tensor(), at::Tensor()};
  }
};

struct RmsNorm : Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in, const at::Tensor& weight,
                            double eps, parallel::GradAccumulator* sink, const Keep& keep) {
    const at::Tensor x = x_in.contiguous();
    const std::int64_t width = x.size(-1);
    const std::int64_t rows = rows_of(x).size(0);
    ATHANOR_CHECK(weight.numel() == width && weight.scalar_type() == x.scalar_type(),
                  "rms_norm of rows of width {} was given a weight of {} elements or another type", width,
                  weight.numel());
    const at::Tensor y = at::empty_like(x);
    const at::Tensor rstd =
        at::empty({rows}, x.options().dtype(parallel::accumulation_type(x.scalar_type())));
    kernels::kernels_of(x).rms_norm_forward(x, weight, eps, y, rstd);
    const StoredActivation kept = store_activation(x, keep);
    ctx->save_for_backward({kept.data, weight, rstd, kept.scales});
    detail::save_sink(ctx, sink);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor& rstd = saved[2];
    const at::Tensor x = restore_activation({saved[0], saved[3]}, weight.scalar_type());
    const at::Tensor dy = grads[0].contiguous();
    const at::Tensor dx = at::empty_like(x);
    const bool wants_weight = ctx->needs_input_grad(1);
    const at::Tensor dweight = wants_weight ? at::zeros({x.size(-1)}, rstd.options()) : at::Tensor();
    kernels::kernels_of(x).rms_norm_backward(dy, x, weight, rstd, dx, dweight);
    return {dx,
            wants_weight ? detail::deliver_weight_gradient(detail::saved_sink(ctx), dweight, weight)
                         : at::Tensor(),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct Swiglu : Function<Swiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_up_in, const Keep& keep) {
    const at::Tensor gate_up = gate_up_in.contiguous();
    ATHANOR_CHECK(gate_up.size(-1) % 2 == 0, "swiglu needs an even width, not {}", gate_up.size(-1));
    const std::int64_t ffn = gate_up.size(-1) / 2;
    const at::Tensor y = at::empty(with_last_dim(gate_up, ffn), gate_up.options());
    kernels::kernels_of(y).swiglu_forward(gate_up, y);
    const StoredActivation kept = store_activation(gate_up, keep);
    ctx->save_for_backward({kept.data, kept.scales});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor dy = grads[0].contiguous();
    const at::Tensor gate_up = restore_activation({saved[0], saved[1]}, dy.scalar_type());
    const at::Tensor dgate_up = at::empty_like(gate_up);
    kernels::kernels_of(dy).swiglu_backward(dy, gate_up, dgate_up);
    return {dgate_up, at::Tensor()};
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const Weight& weight_FD, const StoredActivation& kept_x) {
  return Linear::apply(x, weight_FD.tensor, weight_FD.sink,
                       kept_x.is_defined() ? kept_x : StoredActivation{x, at::Tensor()});
}

at::Tensor rms_norm(const at::Tensor& x, const Weight& weight_D, double eps, const Keep& keep) {
  return RmsNorm::apply(x, weight_D.tensor, eps, weight_D.sink, keep_if_backward(keep));
}

at::Tensor swiglu(const at::Tensor& gate_up, const Keep& keep) {
  return Swiglu::apply(gate_up, keep_if_backward(keep));
}

}  // namespace athanor::nn
