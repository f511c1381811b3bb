#include "kernels/rotary.hpp"

#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

/// Heads are short: loops of this constant length need no vector epilogue.
constexpr std::int64_t head_span = 16;

struct Rotary {
  /// In place capable: both elements of a pair are read before they are written.
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void head(const T* x, const A* cos, const A* sin, A sign, std::int64_t half,
                                         T* y) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < half; ++i) {
      const A a = load(x[i]);
      const A b = load(x[i + half]);
      const A s = sign * sin[i];
      y[i] = store<T>(a * cos[i] - b * s);
      y[i + half] = store<T>(b * cos[i] + a * s);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* x, const A* cos, const A* sin, HeadsShape shape, A sign,
                                        T* y) {
    const std::int64_t half = shape.head_dim / 2;
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        head(x + t * shape.token_stride + h * shape.head_dim, cos + t * half, sin + t * half, sign, half,
             y + (t * shape.heads + h) * shape.head_dim);
      }
    }
  }
};

struct HeadNormRotaryForward {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void span(const T* __restrict x, const T* __restrict weight,
                                         const A* __restrict cos, const A* __restrict sin, A rstd,
                                         std::int64_t half, std::int64_t count, T* __restrict y) {
    for (std::int64_t i = 0; i < count; ++i) {
      const A a = round_through<T>(load(weight[i]) * round_through<T>(load(x[i]) * rstd));
      const A b = round_through<T>(load(weight[i + half]) * round_through<T>(load(x[i + half]) * rstd));
      y[i] = store<T>(a * cos[i] - b * sin[i]);
      y[i + half] = store<T>(b * cos[i] + a * sin[i]);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* x, const T* weight, const A* cos, const A* sin,
                                        HeadsShape shape, A eps, T* y, A* rstd) {
    const std::int64_t half = shape.head_dim / 2;
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      const A* cos_row = cos + t * half;
      const A* sin_row = sin + t * half;
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const std::int64_t n = t * shape.heads + h;
        const T* x_head = x + t * shape.token_stride + h * shape.head_dim;
        T* y_head = y + n * shape.head_dim;
        const A mean_square = dot<A>(x_head, x_head, shape.head_dim) / static_cast<A>(shape.head_dim);
        rstd[n] = A(1) / std::sqrt(mean_square + eps);
        std::int64_t i = 0;
        for (; i + head_span <= half; i += head_span) {
          span(x_head + i, weight + i, cos_row + i, sin_row + i, rstd[n], half, head_span, y_head + i);
        }
        span(x_head + i, weight + i, cos_row + i, sin_row + i, rstd[n], half, half - i, y_head + i);
      }
    }
  }
};

struct HeadNormRotaryBackward {
  /// Sum of g * x over a head, with g = weight * (dy rotated back).
  template <typename A, typename T>
  ATHANOR_KERNEL_INLINE static A weighted_dot(const T* dy, const T* x, const T* weight, const A* cos,
                                              const A* sin, std::int64_t half) {
    LaneSum<A> sum;
    constexpr int lanes = LaneSum<A>::width;
    std::int64_t i = 0;
    for (; i + lanes <= half; i += lanes) {
      for (int j = 0; j < lanes; ++j) {
        sum.lane[j] += pair(dy, x, weight, cos, sin, half, i + j);
      }
    }
    for (int j = 0; i < half; ++i, ++j) {
      sum.lane[j] += pair(dy, x, weight, cos, sin, half, i);
    }
    return sum.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static A pair(const T* dy, const T* x, const T* weight, const A* cos, const A* sin,
                                      std::int64_t half, std::int64_t i) {
    const A a = load(dy[i]);
    const A b = load(dy[i + half]);
    return (a * cos[i] + b * sin[i]) * load(weight[i]) * load(x[i]) +
           (b * cos[i] - a * sin[i]) * load(weight[i + half]) * load(x[i + half]);
  }

  /// dx of columns [0, count) and [half, half + count).
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void data(const T* __restrict dy, const T* __restrict x,
                                         const T* __restrict weight, const A* __restrict cos,
                                         const A* __restrict sin, A rstd, A projection, std::int64_t half,
                                         std::int64_t count, T* __restrict dx) {
    for (std::int64_t i = 0; i < count; ++i) {
      const A a = load(dy[i]);
      const A b = load(dy[i + half]);
      dx[i] = store<T>(rstd * ((a * cos[i] + b * sin[i]) * load(weight[i]) - load(x[i]) * projection));
      dx[i + half] = store<T>(
          rstd * ((b * cos[i] - a * sin[i]) * load(weight[i + half]) - load(x[i + half]) * projection));
    }
  }
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void weight_sum(const T* __restrict dy, const T* __restrict x,
                                               const A* __restrict cos, const A* __restrict sin, A rstd,
                                               std::int64_t half, std::int64_t count, A* __restrict dweight) {
    for (std::int64_t i = 0; i < count; ++i) {
      const A a = load(dy[i]);
      const A b = load(dy[i + half]);
      dweight[i] += (a * cos[i] + b * sin[i]) * round_through<T>(load(x[i]) * rstd);
      dweight[i + half] += (b * cos[i] - a * sin[i]) * round_through<T>(load(x[i + half]) * rstd);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void head(const T* dy, const T* x, const T* weight, const A* cos, const A* sin,
                                         A rstd, std::int64_t half, T* dx, A* dweight) {
    const A projection =
        weighted_dot<A>(dy, x, weight, cos, sin, half) * rstd * rstd / static_cast<A>(2 * half);
    std::int64_t i = 0;
    for (; i + head_span <= half; i += head_span) {
      data(dy + i, x + i, weight + i, cos + i, sin + i, rstd, projection, half, head_span, dx + i);
    }
    data(dy + i, x + i, weight + i, cos + i, sin + i, rstd, projection, half, half - i, dx + i);
    if (dweight == nullptr) {
      return;
    }
    for (i = 0; i + head_span <= half; i += head_span) {
      weight_sum(dy + i, x + i, cos + i, sin + i, rstd, half, head_span, dweight + i);
    }
    weight_sum(dy + i, x + i, cos + i, sin + i, rstd, half, half - i, dweight + i);
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* dy, const T* x, const T* weight, const A* cos, const A* sin,
                                        const A* rstd, HeadsShape shape, T* dx, A* dweight) {
    const std::int64_t half = shape.head_dim / 2;
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const std::int64_t n = t * shape.heads + h;
        const std::int64_t offset = t * shape.token_stride + h * shape.head_dim;
        head(dy + n * shape.head_dim, x + offset, weight, cos + t * half, sin + t * half, rstd[n], half,
             dx + offset, dweight);
      }
    }
  }
};

}  // namespace

template <typename T>
void rotary(const T* x, const accumulation_t<T>* cos, const accumulation_t<T>* sin, const HeadsShape& shape,
            RotaryDirection direction, T* y) {
  const accumulation_t<T> sign = direction == RotaryDirection::forward ? 1 : -1;
  dispatch<Rotary>(x, cos, sin, shape, sign, y);
}

template <typename T>
void head_norm_rotary_forward(const T* x, const T* weight, const accumulation_t<T>* cos,
                              const accumulation_t<T>* sin, const HeadsShape& shape, double eps, T* y,
                              accumulation_t<T>* rstd) {
  dispatch<HeadNormRotaryForward>(x, weight, cos, sin, shape, static_cast<accumulation_t<T>>(eps), y, rstd);
}

template <typename T>
void head_norm_rotary_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* cos,
                               const accumulation_t<T>* sin, const accumulation_t<T>* rstd,
                               const HeadsShape& shape, T* dx, accumulation_t<T>* dweight) {
  dispatch<HeadNormRotaryBackward>(dy, x, weight, cos, sin, rstd, shape, dx, dweight);
}

#define ATHANOR_INSTANTIATE(T)                                                                             \
  template void rotary<T>(const T*, const accumulation_t<T>*, const accumulation_t<T>*, const HeadsShape&, \
                          RotaryDirection, T*);                                                            \
  template void head_norm_rotary_forward<T>(const T*, const T*, const accumulation_t<T>*,                  \
                                            const accumulation_t<T>*, const HeadsShape&, double, T*,       \
                                            accumulation_t<T>*);                                           \
  template void head_norm_rotary_backward<T>(const T*, const T*, const T*, const accumulation_t<T>*,       \
                                             const accumulation_t<T>*, const accumulation_t<T>*,           \
                                             const HeadsShape&, T*, accumulation_t<T>*);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
