#include "kernels/adamw.hpp"

#include <cmath>

namespace athanor::kernels::reference {

template <typename A>
void adamw_update(A* master, A* exp_avg, A* exp_avg_sq, const A* grad, std::int64_t n,
                  const AdamwScalars& s) {
  for (std::int64_t i = 0; i < n; ++i) {
    const double g = s.gradient_scale * grad[i];
    const double m = s.beta1 * exp_avg[i] + (1.0 - s.beta1) * g;
    const double v = s.beta2 * exp_avg_sq[i] + (1.0 - s.beta2) * g * g;
    const double m_hat = m / s.bias_correction1;
    const double v_hat = v / s.bias_correction2;
    const double decayed = master[i] - s.lr * s.weight_decay * master[i];
    master[i] = static_cast<A>(decayed - s.lr * m_hat / (std::sqrt(v_hat) + s.eps));
    exp_avg[i] = static_cast<A>(m);
    exp_avg_sq[i] = static_cast<A>(v);
  }
}

template void adamw_update<float>(float*, float*, float*, const float*, std::int64_t, const AdamwScalars&);
template void adamw_update<double>(double*, double*, double*, const double*, std::int64_t,
                                   const AdamwScalars&);

}  // namespace athanor::kernels::reference
