// TensorKernels by the functions on pointers of one kind of device.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "device/device.hpp"
#include "device/stream.hpp"
#include "kernels/activation.hpp"
#include "kernels/cross_entropy.hpp"
#include "kernels/element.hpp"
#include "kernels/norm.hpp"
#include "kernels/permute.hpp"
#include "kernels/reduce.hpp"
#include "kernels/tensor_kernels.hpp"

namespace athanor::kernels::detail {

/// Calls function(T()) for the element type of `tensor`.
template <typename Function>
void for_element_of(const at::Tensor& tensor, const Function& function) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, tensor.scalar_type(), "kernel",
                                  [&] { function(scalar_t()); });
}

template <typename T>
const T* read(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}
template <typename T>
T* write(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

inline std::int64_t rows_of(const at::Tensor& x) {
  std::int64_t rows = 1;
  for (std::int64_t dim = 0; dim + 1 < x.dim(); ++dim) {
    rows *= x.size(dim);
  }
  return rows;
}

inline HeadsShape heads_of(const at::Tensor& x_BSHC) {
  return {x_BSHC.size(0) * x_BSHC.size(1), x_BSHC.size(2), x_BSHC.size(3), x_BSHC.stride(1)};
}

/// Calls the function of the kind of device; that of CUDA on the tensors' current stream, whose allocator
/// keeps memory that is freed meanwhile until the work queued before is done.
#define ATHANOR_CALL_KERNEL(name, ...)                 \
  if constexpr (kind == device::DeviceKind::cuda) {    \
    cuda::name(__VA_ARGS__, device::current_stream()); \
  } else {                                             \
    cpu::name(__VA_ARGS__);                            \
  }                                                    \
  static_assert(true)

template <device::DeviceKind kind>
class TensorKernelsOf final : public TensorKernels {
 public:
  void rms_norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& y,
                        const at::Tensor& rstd) const override {
    for_element_of(x, [&]<typename T>(T) {
      ATHANOR_CALL_KERNEL(rms_norm_forward, read<T>(x), read<T>(weight), rows_of(x), x.size(-1), eps,
                          write<T>(y), write<accumulation_t<T>>(rstd));
    });
  }
  void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& rstd, const at::Tensor& dx,
                         const at::Tensor& dweight) const override {
    for_element_of(x, [&]<typename T>(T) {
      using A = accumulation_t<T>;
      if constexpr (kind == device::DeviceKind::cuda) {
        const at::Tensor partial = norm_partial(dweight);
        cuda::rms_norm_backward(read<T>(dy), read<T>(x), read<T>(weight), read<A>(rstd), rows_of(x),
                                x.size(-1), write<T>(dx), write<A>(dweight), write<A>(partial),
                                device::current_stream());
      } else {
        cpu::rms_norm_backward(read<T>(dy), read<T>(x), read<T>(weight), read<A>(rstd), rows_of(x),
                               x.size(-1), write<T>(dx), write<A>(dweight));
      }
    });
  }

  void swiglu_forward(const at::Tensor& gate_up, const at::Tensor& y) const override {
    for_element_of(y, [&]<typename T>(T) {
      ATHANOR_CALL_KERNEL(swiglu_forward, read<T>(gate_up), rows_of(y), y.size(-1), write<T>(y));
    });
  }
  void swiglu_backward(const at::Tensor& dy, const at::Tensor& gate_up,
                       const at::Tensor& dgate_up) const override {
    for_element_of(dy, [&]<typename T>(T) {
      ATHANOR_CALL_KERNEL(swiglu_backward, read<T>(dy), read<T>(gate_up), rows_of(dy), dy.size(-1),
                          write<T>(dgate_up));
    });
  }

  void rotary(const at::Tensor& x, const RotaryTables& tables, RotaryDirection direction,
              const at::Tensor& y) const override {
    for_element_of(x, [&]<typename T>(T) {
      using A = accumulation_t<T>;
      ATHANOR_CALL_KERNEL(rotary, read<T>(x), read<A>(tables.cos), read<A>(tables.sin), heads_of(x),
                          direction, write<T>(y));
    });
  }
  void head_norm_rotary_forward(const at::Tensor& x, const at::Tensor& weight, const RotaryTables& tables,
                                double eps, const at::Tensor& y, const at::Tensor& rstd) const override {
    for_element_of(x, [&]<typename T>(T) {
      using A = accumulation_t<T>;
      ATHANOR_CALL_KERNEL(head_norm_rotary_forward, read<T>(x), read<T>(weight), read<A>(tables.cos),
                          read<A>(tables.sin), heads_of(x), eps, write<T>(y), write<A>(rstd));
    });
  }
  void head_norm_rotary_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                                 const RotaryTables& tables, const at::Tensor& rstd, const at::Tensor& dx,
                                 const at::Tensor& dweight) const override {
    for_element_of(x, [&]<typename T>(T) {
      using A = accumulation_t<T>;
      if constexpr (kind == device::DeviceKind::cuda) {
        const at::Tensor partial = norm_partial(dweight);
        cuda::head_norm_rotary_backward(read<T>(dy), read<T>(x), read<T>(weight), read<A>(tables.cos),
                                        read<A>(tables.sin), read<A>(rstd), heads_of(x), write<T>(dx),
                                        write<A>(dweight), write<A>(partial), device::current_stream());
      } else {
        cpu::head_norm_rotary_backward(read<T>(dy), read<T>(x), read<T>(weight), read<A>(tables.cos),
                                       read<A>(tables.sin), read<A>(rstd), heads_of(x), write<T>(dx),
                                       write<A>(dweight));
      }
    });
  }

  void softmax_statistics(const at::Tensor& logits, const at::Tensor& labels,
                          const at::Tensor& statistics) const override {
    for_element_of(logits, [&]<typename T>(T) {
      using A = accumulation_t<T>;
      ATHANOR_CALL_KERNEL(softmax_statistics, read<T>(logits), read<std::int64_t>(labels), logits.size(0),
                          logits.size(1), reinterpret_cast<SoftmaxStatistics<A>*>(write<A>(statistics)));
    });
  }
  void join_softmax_statistics(const at::Tensor& statistics, const at::Tensor& ignored,
                               const SoftmaxRows& rows, const at::Tensor& loss) const override {
    const auto join = [&]<typename A>(A) {
      ATHANOR_CALL_KERNEL(join_softmax_statistics,
                          reinterpret_cast<const SoftmaxStatistics<A>*>(read<A>(statistics)),
                          statistics.size(0), loss.numel(), read<bool>(ignored), write<A>(rows.maximum),
                          write<A>(rows.inverse_sum), write<A>(loss));
    };
    loss.scalar_type() == at::kDouble ? join(double()) : join(float());
  }
  void cross_entropy_backward(const at::Tensor& logits, const at::Tensor& labels, const SoftmaxRows& rows,
                              double gradient_scale) const override {
    for_element_of(logits, [&]<typename T>(T) {
      using A = accumulation_t<T>;
      ATHANOR_CALL_KERNEL(cross_entropy_backward, write<T>(logits), read<std::int64_t>(labels),
                          read<A>(rows.maximum), read<A>(rows.inverse_sum), logits.size(0), logits.size(1),
                          static_cast<A>(gradient_scale));
    });
  }

  void combine_rows(const at::Tensor& x, const at::Tensor& slot, const at::Tensor& gates,
                    const at::Tensor& y) const override {
    for_element_of(y, [&]<typename T>(T) {
      ATHANOR_CALL_KERNEL(combine_rows, read<T>(x), read<std::int64_t>(slot), read<accumulation_t<T>>(gates),
                          y.size(0), slot.size(1), y.size(1), write<T>(y));
    });
  }
  void combine_rows_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& slot,
                             const at::Tensor& gates, const at::Tensor& dx,
                             const at::Tensor& dgates) const override {
    for_element_of(dy, [&]<typename T>(T) {
      using A = accumulation_t<T>;
      ATHANOR_CALL_KERNEL(combine_rows_backward, read<T>(dy), read<T>(x), read<std::int64_t>(slot),
                          read<A>(gates), dy.size(0), slot.size(1), dy.size(1), write<T>(dx),
                          write<A>(dgates));
    });
  }
  void add_rows(const at::Tensor& x, const at::Tensor& row, const at::Tensor& out) const override {
    for_element_of(x, [&]<typename T>(T) {
      ATHANOR_CALL_KERNEL(add_rows, read<T>(x), read<std::int64_t>(row), x.size(0), x.size(1),
                          write<accumulation_t<T>>(out));
    });
  }

  void adamw_update(const AdamwTensors& range, const AdamwScalars& scalars) const override {
    const auto update = [&]<typename A, typename C>(A, C) {
      ATHANOR_CALL_KERNEL(adamw_update, write<A>(range.master), write<A>(range.exp_avg),
                          write<A>(range.exp_avg_sq), read<A>(range.gradient), range.gradient.numel(),
                          scalars, write<C>(range.copy));
    };
    if (!range.copy.defined()) {
      range.master.scalar_type() == at::kDouble ? update(double(), double()) : update(float(), float());
      return;
    }
    for_element_of(range.copy, [&]<typename C>(C copy) { update(accumulation_t<C>(), copy); });
  }
  void squares_of_parts(const at::Tensor& x, std::int64_t part_size, const at::Tensor& sums) const override {
    for_element_of(x, [&]<typename T>(T) {
      ATHANOR_CALL_KERNEL(squares_of_parts, read<T>(x), x.numel(), part_size, write<double>(sums));
    });
  }

 private:
  /// Working memory for the gradient of a norm's weight.
  static at::Tensor norm_partial(const at::Tensor& dweight) {
    return dweight.defined() ? at::empty({norm_partials, dweight.numel()}, dweight.options()) : at::Tensor();
  }
};

#undef ATHANOR_CALL_KERNEL

}  // namespace athanor::kernels::detail
