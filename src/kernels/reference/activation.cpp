#include "kernels/activation.hpp"

#include <cmath>

namespace athanor::kernels::reference {

template <typename T>
void swiglu_forward(const T* gate_up, std::int64_t rows, std::int64_t ffn, T* y) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < ffn; ++c) {
      const double gate = gate_up[r * 2 * ffn + c];
      const double up = gate_up[r * 2 * ffn + ffn + c];
      y[r * ffn + c] = static_cast<T>(gate / (1.0 + std::exp(-gate)) * up);
    }
  }
}

template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, std::int64_t rows, std::int64_t ffn, T* dgate_up) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < ffn; ++c) {
      const double gate = gate_up[r * 2 * ffn + c];
      const double up = gate_up[r * 2 * ffn + ffn + c];
      const double sigmoid = 1.0 / (1.0 + std::exp(-gate));
      const double silu_derivative = sigmoid + gate * sigmoid * (1.0 - sigmoid);
      dgate_up[r * 2 * ffn + c] = static_cast<T>(dy[r * ffn + c] * up * silu_derivative);
      dgate_up[r * 2 * ffn + ffn + c] = static_cast<T>(dy[r * ffn + c] * gate * sigmoid);
    }
  }
}

#define ATHANOR_INSTANTIATE(T)                                               \
  template void swiglu_forward<T>(const T*, std::int64_t, std::int64_t, T*); \
  template void swiglu_backward<T>(const T*, const T*, std::int64_t, std::int64_t, T*);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::reference
