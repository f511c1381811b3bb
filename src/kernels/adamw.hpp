// One AdamW update of a flat range of parameters. Loshchilov & Hutter 2019, algorithm 2.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

/// Numbers of one update, the same for a whole range.
struct AdamwScalars {
  double lr = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double bias_correction1 = 1.0;  ///< 1 - beta1^step
  double bias_correction2 = 1.0;  ///< 1 - beta2^step
  double gradient_scale = 1.0;    ///< the gradient is multiplied by it first (mean, clipping)
};

// In place on `n` elements, all in the accumulation type A (f32 or f64):
//   g = scale*grad;  m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g^2
//   master = master*(1 - lr*decay) - lr/c1 * m / (sqrt(v/c2) + eps)
// `copy`, if not nullptr, receives the new master rounded to the compute type C (f32, f64, bf16, fp16).
namespace cpu {
template <typename A, typename C>
void adamw_update(A* master, A* exp_avg, A* exp_avg_sq, const A* grad, std::int64_t n,
                  const AdamwScalars& scalars, C* copy);
/// Without a copy.
template <typename A>
void adamw_update(A* master, A* exp_avg, A* exp_avg_sq, const A* grad, std::int64_t n,
                  const AdamwScalars& scalars) {
  adamw_update(master, exp_avg, exp_avg_sq, grad, n, scalars, static_cast<A*>(nullptr));
}
/// out[i] = master[i] rounded to C: publishes master weights.
template <typename A, typename C>
void convert_elements(const A* master, std::int64_t n, C* out);
}  // namespace cpu

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {
/// copy == nullptr: not wanted.
template <typename A, typename C>
void adamw_update(A* master, A* exp_avg, A* exp_avg_sq, const A* grad, std::int64_t n,
                  const AdamwScalars& scalars, C* copy, device::StreamHandle stream);
template <typename A, typename C>
void convert_elements(const A* master, std::int64_t n, C* out, device::StreamHandle stream);
}  // namespace cuda

namespace reference {
template <typename A>
void adamw_update(A* master, A* exp_avg, A* exp_avg_sq, const A* grad, std::int64_t n,
                  const AdamwScalars& scalars);
}  // namespace reference

}  // namespace athanor::kernels
