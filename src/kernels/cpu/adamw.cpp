#include "kernels/adamw.hpp"

#include "kernels/bodies/adamw.hpp"
#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

struct AdamwUpdate {
  template <typename A, typename C>
  ATHANOR_KERNEL_INLINE static void run(A* __restrict master, A* __restrict exp_avg, A* __restrict exp_avg_sq,
                                        const A* __restrict grad, std::int64_t n, bodies::AdamwFactors<A> s,
                                        C* __restrict copy) {
    if (copy == nullptr) {
      for (std::int64_t i = 0; i < n; ++i) {
        master[i] = bodies::adamw_updated(master[i], exp_avg[i], exp_avg_sq[i], grad[i], s);
      }
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        const A value = bodies::adamw_updated(master[i], exp_avg[i], exp_avg_sq[i], grad[i], s);
        master[i] = value;
        copy[i] = store<C>(value);
      }
    }
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
  dispatch<AdamwUpdate>(master, exp_avg, exp_avg_sq, grad, n, bodies::AdamwFactors<A>(scalars), copy);
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
