#include "kernels/norm.hpp"

#include <cmath>

namespace athanor::kernels::reference {

template <typename T>
void rms_norm_forward(const T* x, const T* weight, std::int64_t rows, std::int64_t width, double eps, T* y,
                      accumulation_t<T>* rstd) {
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = 0.0;
    for (std::int64_t c = 0; c < width; ++c) {
      sum += static_cast<double>(x[r * width + c]) * static_cast<double>(x[r * width + c]);
    }
    rstd[r] = static_cast<T>(1.0 / std::sqrt(sum / static_cast<double>(width) + eps));
    for (std::int64_t c = 0; c < width; ++c) {
      y[r * width + c] = weight[c] * (x[r * width + c] * rstd[r]);
    }
  }
}

template <typename T>
void rms_norm_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* rstd,
                       std::int64_t rows, std::int64_t width, T* dx, accumulation_t<T>* dweight) {
  for (std::int64_t r = 0; r < rows; ++r) {
    double mean = 0.0;  // of g * n
    for (std::int64_t c = 0; c < width; ++c) {
      const std::int64_t i = r * width + c;
      mean += static_cast<double>(dy[i]) * weight[c] * x[i] * rstd[r] / static_cast<double>(width);
    }
    for (std::int64_t c = 0; c < width; ++c) {
      const std::int64_t i = r * width + c;
      const double n = static_cast<double>(x[i]) * rstd[r];
      if (dweight != nullptr) {
        dweight[c] += static_cast<T>(dy[i] * n);
      }
      dx[i] = static_cast<T>(rstd[r] * (static_cast<double>(dy[i]) * weight[c] - n * mean));
    }
  }
}

#define ATHANOR_INSTANTIATE(T)                                                                             \
  template void rms_norm_forward<T>(const T*, const T*, std::int64_t, std::int64_t, double, T*,            \
                                    accumulation_t<T>*);                                                   \
  template void rms_norm_backward<T>(const T*, const T*, const T*, const accumulation_t<T>*, std::int64_t, \
                                     std::int64_t, T*, accumulation_t<T>*);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::reference
