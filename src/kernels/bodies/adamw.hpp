// AdamW of one element.
#pragma once

#include "kernels/adamw.hpp"
#include "kernels/bodies/elements.hpp"

namespace athanor::kernels::bodies {

/// Square root within 1 ulp of x >= 0 (std::sqrt may set errno, which keeps loops from being vectorised):
/// Newton steps for 1/sqrt(x) from the exponent-halving first guess, then one for the root itself. 0 gives 0.
template <typename A>
ATHANOR_BODY A square_root(A x) {
  using Bits = std::conditional_t<std::is_same_v<A, double>, std::uint64_t, std::uint32_t>;
  constexpr bool is_double = std::is_same_v<A, double>;
  constexpr Bits magic =
      is_double ? static_cast<Bits>(0x5fe6eb50c7b537a9ull) : static_cast<Bits>(0x5f375a86u);
  A y = bits_as<A>(static_cast<Bits>(magic - (bits_as<Bits>(x) >> 1)));
  for (int step = 0; step < (is_double ? 4 : 3); ++step) {
    y = y * (A(1.5) - A(0.5) * x * y * y);
  }
  const A root = x * y;
  return root + A(0.5) * y * (x - root * root);
}

/// AdamwScalars as the loop uses them, in the accumulation type.
template <typename A>
struct AdamwFactors {
  explicit AdamwFactors(const AdamwScalars& s)
      : scale(static_cast<A>(s.gradient_scale)),
        beta1(static_cast<A>(s.beta1)),
        one_minus_beta1(static_cast<A>(1.0 - s.beta1)),
        beta2(static_cast<A>(s.beta2)),
        one_minus_beta2(static_cast<A>(1.0 - s.beta2)),
        keep(static_cast<A>(1.0 - s.lr * s.weight_decay)),
        step(static_cast<A>(s.lr / s.bias_correction1)),
        inverse_correction2(static_cast<A>(1.0 / s.bias_correction2)),
        eps(static_cast<A>(s.eps)) {}
  A scale, beta1, one_minus_beta1, beta2, one_minus_beta2, keep, step, inverse_correction2, eps;
};

/// The new master weight; the moments are updated in place.
template <typename A>
ATHANOR_BODY A adamw_updated(A master, A& exp_avg, A& exp_avg_sq, A grad, const AdamwFactors<A>& s) {
  const A g = s.scale * grad;
  const A m = s.beta1 * exp_avg + s.one_minus_beta1 * g;
  const A v = s.beta2 * exp_avg_sq + s.one_minus_beta2 * (g * g);
  exp_avg = m;
  exp_avg_sq = v;
  return master * s.keep - s.step * m / (square_root(v * s.inverse_correction2) + s.eps);
}

template <typename A, typename C>
struct AdamwElement {
  A* master;
  A* exp_avg;
  A* exp_avg_sq;
  const A* grad;
  AdamwFactors<A> factors;
  C* copy;  ///< nullptr: not wanted

  ATHANOR_BODY void operator()(std::int64_t i) const {
    const A value = adamw_updated(master[i], exp_avg[i], exp_avg_sq[i], grad[i], factors);
    master[i] = value;
    if (copy != nullptr) {
      copy[i] = store<C>(value);
    }
  }
};

template <typename A, typename C>
struct ConvertElement {
  const A* master;
  C* out;
  ATHANOR_BODY void operator()(std::int64_t i) const { out[i] = store<C>(load(master[i])); }
};

}  // namespace athanor::kernels::bodies
