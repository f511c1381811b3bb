#include "nn/functional.hpp"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.hpp"
#include "kernels/activation.hpp"
#include "kernels/norm.hpp"
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
                            parallel::GradAccumulator* sink) {
    const at::Tensor weight_FD = rows_of(weight);
    ATHANOR_CHECK(x.size(-1) == weight_FD.size(1), "linear of width {} was given rows of width {}",
                  weight_FD.size(1), x.size(-1));
    ctx->save_for_backward({x, weight});
    detail::save_sink(ctx, sink);
    return at::mm(rows_of(x), weight_FD.t()).view(with_last_dim(x, weight_FD.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor dy_NF = rows_of(grads[0]);
    at::Tensor dx;
    at::Tensor dweight;
    if (ctx->needs_input_grad(0)) {
      dx = at::mm(dy_NF, rows_of(weight)).view(x.sizes());
    }
    if (ctx->needs_input_grad(1)) {
      if (parallel::GradAccumulator* sink = detail::saved_sink(ctx)) {
        sink->add_matmul(dy_NF.t(), rows_of(x));
      } else {
        dweight = at::mm(dy_NF.t(), rows_of(x)).view(weight.sizes());
      }
    }
    return {dx, dweight, at::Tensor()};
  }
};

struct RmsNorm : Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in, const at::Tensor& weight,
                            double eps, parallel::GradAccumulator* sink) {
    const at::Tensor x = x_in.contiguous();
    const std::int64_t width = x.size(-1);
    const std::int64_t rows = rows_of(x).size(0);
    ATHANOR_CHECK(weight.numel() == width && weight.scalar_type() == x.scalar_type(),
                  "rms_norm of rows of width {} was given a weight of {} elements or another type", width,
                  weight.numel());
    const at::Tensor y = at::empty_like(x);
    const at::Tensor rstd =
        at::empty({rows}, x.options().dtype(parallel::accumulation_type(x.scalar_type())));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "rms_norm", [&] {
      kernels::cpu::rms_norm_forward(x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), rows,
                                     width, eps, y.data_ptr<scalar_t>(),
                                     rstd.data_ptr<kernels::accumulation_t<scalar_t>>());
    });
    ctx->save_for_backward({x, weight, rstd});
    detail::save_sink(ctx, sink);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& rstd = saved[2];
    const at::Tensor dy = grads[0].contiguous();
    const at::Tensor dx = at::empty_like(x);
    const bool wants_weight = ctx->needs_input_grad(1);
    const at::Tensor dweight = wants_weight ? at::zeros({x.size(-1)}, rstd.options()) : at::Tensor();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "rms_norm_backward", [&] {
      using A = kernels::accumulation_t<scalar_t>;
      kernels::cpu::rms_norm_backward(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                                      weight.const_data_ptr<scalar_t>(), rstd.const_data_ptr<A>(),
                                      rstd.numel(), x.size(-1), dx.data_ptr<scalar_t>(),
                                      wants_weight ? dweight.data_ptr<A>() : nullptr);
    });
    return {dx,
            wants_weight ? detail::deliver_weight_gradient(detail::saved_sink(ctx), dweight, weight)
                         : at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

struct Swiglu : Function<Swiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_up_in) {
    const at::Tensor gate_up = gate_up_in.contiguous();
    ATHANOR_CHECK(gate_up.size(-1) % 2 == 0, "swiglu needs an even width, not {}", gate_up.size(-1));
    const std::int64_t ffn = gate_up.size(-1) / 2;
    const at::Tensor y = at::empty(with_last_dim(gate_up, ffn), gate_up.options());
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, gate_up.scalar_type(), "swiglu", [&] {
      kernels::cpu::swiglu_forward(gate_up.const_data_ptr<scalar_t>(), rows_of(gate_up).size(0), ffn,
                                   y.data_ptr<scalar_t>());
    });
    ctx->save_for_backward({gate_up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor gate_up = ctx->get_saved_variables()[0];
    const at::Tensor dy = grads[0].contiguous();
    const at::Tensor dgate_up = at::empty_like(gate_up);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, gate_up.scalar_type(), "swiglu_backward", [&] {
      kernels::cpu::swiglu_backward(dy.const_data_ptr<scalar_t>(), gate_up.const_data_ptr<scalar_t>(),
                                    rows_of(gate_up).size(0), dy.size(-1), dgate_up.data_ptr<scalar_t>());
    });
    return {dgate_up};
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const Weight& weight_FD) {
  return Linear::apply(x, weight_FD.tensor, weight_FD.sink);
}

at::Tensor rms_norm(const at::Tensor& x, const Weight& weight_D, double eps) {
  return RmsNorm::apply(x, weight_D.tensor, eps, weight_D.sink);
}

at::Tensor swiglu(const at::Tensor& gate_up) {
  return Swiglu::apply(gate_up);
}

}  // namespace athanor::nn
