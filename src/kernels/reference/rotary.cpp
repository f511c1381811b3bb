#include "kernels/rotary.hpp"

#include <vector>

#include "kernels/norm.hpp"

namespace athanor::kernels::reference {

template <typename T>
void rotary(const T* x, const accumulation_t<T>* cos, const accumulation_t<T>* sin, const HeadsShape& shape,
            RotaryDirection direction, T* y) {
  const std::int64_t half = shape.head_dim / 2;
  for (std::int64_t t = 0; t < shape.tokens; ++t) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t i = 0; i < half; ++i) {
        const T* in = x + t * shape.token_stride + h * shape.head_dim + i;
        T* out = y + (t * shape.heads + h) * shape.head_dim + i;
        const T first = in[0];
        const T second = in[half];
        const T c = cos[t * half + i];
        const T s = direction == RotaryDirection::forward ? sin[t * half + i] : -sin[t * half + i];
        out[0] = first * c - second * s;
        out[half] = second * c + first * s;
      }
    }
  }
}

namespace {

/// The heads of an [N, H, C] array with any token stride as dense rows, and back.
template <typename T>
std::vector<T> dense_heads(const T* x, const HeadsShape& shape) {
  const std::int64_t width = shape.heads * shape.head_dim;
  std::vector<T> rows(static_cast<std::size_t>(shape.tokens * width));
  for (std::int64_t i = 0; i < shape.tokens * width; ++i) {
    rows[static_cast<std::size_t>(i)] = x[i / width * shape.token_stride + i % width];
  }
  return rows;
}

HeadsShape dense(HeadsShape shape) {
  shape.token_stride = shape.heads * shape.head_dim;
  return shape;
}

}  // namespace

template <typename T>
void head_norm_rotary_forward(const T* x, const T* weight, const accumulation_t<T>* cos,
                              const accumulation_t<T>* sin, const HeadsShape& shape, double eps, T* y,
                              accumulation_t<T>* rstd) {
  const std::vector<T> rows = dense_heads(x, shape);
  std::vector<T> normalised(rows.size());
  rms_norm_forward(rows.data(), weight, shape.tokens * shape.heads, shape.head_dim, eps, normalised.data(),
                   rstd);
  rotary(normalised.data(), cos, sin, dense(shape), RotaryDirection::forward, y);
}

template <typename T>
void head_norm_rotary_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* cos,
                               const accumulation_t<T>* sin, const accumulation_t<T>* rstd,
                               const HeadsShape& shape, T* dx, accumulation_t<T>* dweight) {
  const std::vector<T> rows = dense_heads(x, shape);
  std::vector<T> rotated_back(rows.size());
  std::vector<T> dense_dx(rows.size());
  rotary(dy, cos, sin, dense(shape), RotaryDirection::inverse, rotated_back.data());
  rms_norm_backward(rotated_back.data(), rows.data(), weight, rstd, shape.tokens * shape.heads,
                    shape.head_dim, dense_dx.data(), dweight);
  const std::int64_t width = shape.heads * shape.head_dim;
  for (std::int64_t i = 0; i < shape.tokens * width; ++i) {
    dx[i / width * shape.token_stride + i % width] = dense_dx[static_cast<std::size_t>(i)];
  }
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
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::reference
