#include "kernels/norm.hpp"

#include "kernels/bodies/norm.hpp"
#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

struct RmsNormForward {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void scale(const T* __restrict x, const T* __restrict weight, A rstd,
                                          std::int64_t width, T* __restrict y) {
    for (std::int64_t c = 0; c < width; ++c) {
      y[c] = store<T>(load(weight[c]) * bodies::normalised(x[c], rstd));
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* x, const T* weight, std::int64_t rows, std::int64_t width,
                                        A eps, T* y, A* rstd) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* x_row = x + r * width;
      rstd[r] = A(1) / std::sqrt(dot<A>(x_row, x_row, width) / static_cast<A>(width) + eps);
      scale(x_row, weight, rstd[r], width, y + r * width);
    }
  }
};

struct RmsNormBackward {
  /// sum over c of dy * weight * x.
  template <typename A, typename T>
  ATHANOR_KERNEL_INLINE static A weighted_dot(const T* dy, const T* weight, const T* x, std::int64_t width) {
    LaneSum<A> sum;
    constexpr int lanes = LaneSum<A>::width;
    std::int64_t c = 0;
    for (; c + lanes <= width; c += lanes) {
      for (int j = 0; j < lanes; ++j) {
        sum.lane[j] += load(dy[c + j]) * load(weight[c + j]) * load(x[c + j]);
      }
    }
    for (int j = 0; c < width; ++c, ++j) {
      sum.lane[j] += load(dy[c]) * load(weight[c]) * load(x[c]);
    }
    return sum.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void data(const T* __restrict dy, const T* __restrict x,
                                         const T* __restrict weight, A rstd, A projection, std::int64_t width,
                                         T* __restrict dx) {
    for (std::int64_t c = 0; c < width; ++c) {
      dx[c] = store<T>(bodies::norm_gradient(load(dy[c]) * load(weight[c]), x[c], rstd, projection));
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void weight_sum(const T* __restrict dy, const T* __restrict x, A rstd,
                                               std::int64_t width, A* __restrict dweight) {
    for (std::int64_t c = 0; c < width; ++c) {
      dweight[c] += load(dy[c]) * bodies::normalised(x[c], rstd);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* dy, const T* x, const T* weight, const A* rstd,
                                        std::int64_t rows, std::int64_t width, T* dx, A* dweight) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* dy_row = dy + r * width;
      const T* x_row = x + r * width;
      const A projection =
          weighted_dot<A>(dy_row, weight, x_row, width) * rstd[r] * rstd[r] / static_cast<A>(width);
      data(dy_row, x_row, weight, rstd[r], projection, width, dx + r * width);
      if (dweight != nullptr) {
        weight_sum(dy_row, x_row, rstd[r], width, dweight);
      }
    }
  }
};

}  // namespace

template <typename T>
void rms_norm_forward(const T* x, const T* weight, std::int64_t rows, std::int64_t width, double eps, T* y,
                      accumulation_t<T>* rstd) {
  dispatch<RmsNormForward>(x, weight, rows, width, static_cast<accumulation_t<T>>(eps), y, rstd);
}

template <typename T>
void rms_norm_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* rstd,
                       std::int64_t rows, std::int64_t width, T* dx, accumulation_t<T>* dweight) {
  dispatch<RmsNormBackward>(dy, x, weight, rstd, rows, width, dx, dweight);
}

#define ATHANOR_INSTANTIATE(T)                                                                             \
  template void rms_norm_forward<T>(const T*, const T*, std::int64_t, std::int64_t, double, T*,            \
                                    accumulation_t<T>*);                                                   \
  template void rms_norm_backward<T>(const T*, const T*, const T*, const accumulation_t<T>*, std::int64_t, \
                                     std::int64_t, T*, accumulation_t<T>*);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
