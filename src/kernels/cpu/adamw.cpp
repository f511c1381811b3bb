#include "kernels/adamw.hpp"

#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

/// Square root within 1 ulp of x >= 0 (std::sqrt may set errno, which keeps loops from being vectorised):
/// Newton steps for 1/sqrt(x) from the exponent-halving first guess, then one for the root itself. 0 gives 0.
template <typename A>
ATHANOR_KERNEL_INLINE A square_root(A x) {
  using Bits = std::conditional_t<std::is_same_v<A, double>, std::uint64_t, std::uint32_t>;
  constexpr bool is_double = std::is_same_v<A, double>;
  constexpr Bits magic =
      is_double ? static_cast<Bits>(0x5fe6eb50c7b537a9ull) : static_cast<Bits>(0x5f375a86u);
  A y = std::bit_cast<A>(static_cast<Bits>(magic - (std::bit_cast<Bits>(x) >> 1)));
  for (int step = 0; step < (is_double ? 4 : 3); ++step) {
    y = y * (A(1.5) - A(0.5) * x * y * y);
  }
  const A root = x * y;
  return root + A(0.5) * y * (x - root * root);
}

/// AdamwScalars as the loop uses them, in the accumulation type.
template <typename A>
struct LoopScalars {
  explicit LoopScalars(const AdamwScalars& s)
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

struct AdamwUpdate {
  template <typename A, typename C>
  ATHANOR_KERNEL_INLINE static void run(A* __restrict master, A* __restrict exp_avg, A* __restrict exp_avg_sq,
                                        const A* __restrict grad, std::int64_t n, LoopScalars<A> s,
                                        C* __restrict copy) {
    if (copy == nullptr) {
      for (std::int64_t i = 0; i < n; ++i) {
        master[i] = updated(master[i], exp_avg[i], exp_avg_sq[i], grad[i], s);
      }
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        const A value = updated(master[i], exp_avg[i], exp_avg_sq[i], grad[i], s);
        master[i] = value;
        copy[i] = store<C>(value);
      }
    }
  }

  template <typename A>
  ATHANOR_KERNEL_INLINE static A updated(A master, A& exp_avg, A& exp_avg_sq, A grad,
                                         const LoopScalars<A>& s) {
    const A g = s.scale * grad;
    const A m = s.beta1 * exp_avg + s.one_minus_beta1 * g;
    const A v = s.beta2 * exp_avg_sq + s.one_minus_beta2 * (g * g);
    exp_avg = m;
    exp_avg_sq = v;
    return master * s.keep - s.step * m / (square_root(v * s.inverse_correction2) + s.eps);
  }
};

struct ConvertElements {
  template <typename A, typename C>
  ATHANOR_KERNEL_INLINE static void run(const A* __restrict master, std::int64_t n, C* __restrict out) {
    for (std::int64_t i = 0; i < n; ++i) {
      out[i] = store<C>(load(master[i]));
    }
  }
};

}  // namespace

template <typename A, typename C>
void adamw_update(A* master, A* exp_avg, A* exp_avg_sq, const A* grad, std::int64_t n,
                  const AdamwScalars& scalars, C* copy) {
  dispatch<AdamwUpdate>(master, exp_avg, exp_avg_sq, grad, n, LoopScalars<A>(scalars), copy);
}

template <typename A, typename C>
void convert_elements(const A* master, std::int64_t n, C* out) {
  dispatch<ConvertElements>(master, n, out);
}

#define ATHANOR_INSTANTIATE(A, C)                                                                \
  template void adamw_update<A, C>(A*, A*, A*, const A*, std::int64_t, const AdamwScalars&, C*); \
  template void convert_elements<A, C>(const A*, std::int64_t, C*);
ATHANOR_INSTANTIATE(float, float)
ATHANOR_INSTANTIATE(float, c10::BFloat16)
ATHANOR_INSTANTIATE(float, c10::Half)
ATHANOR_INSTANTIATE(double, double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
