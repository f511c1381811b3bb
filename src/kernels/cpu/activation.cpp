#include "kernels/activation.hpp"

#include "kernels/bodies/activation.hpp"
#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

struct SwigluForward {
  template <typename T>
  ATHANOR_KERNEL_INLINE static void row(const T* __restrict gate, const T* __restrict up, std::int64_t ffn,
                                        T* __restrict y) {
    for (std::int64_t c = 0; c < ffn; ++c) {
      y[c] = store<T>(bodies::swiglu(load(gate[c]), load(up[c])));
    }
  }

  template <typename T>
  ATHANOR_KERNEL_INLINE static void run(const T* gate_up, std::int64_t rows, std::int64_t ffn, T* y) {
    for (std::int64_t r = 0; r < rows; ++r) {
      row(gate_up + 2 * r * ffn, gate_up + (2 * r + 1) * ffn, ffn, y + r * ffn);
    }
  }
};

struct SwigluBackward {
  template <typename T>
  ATHANOR_KERNEL_INLINE static void row(const T* __restrict dy, const T* __restrict gate,
                                        const T* __restrict up, std::int64_t ffn, T* __restrict dgate,
                                        T* __restrict dup) {
    for (std::int64_t c = 0; c < ffn; ++c) {
      const auto gradient = bodies::swiglu_gradient(load(dy[c]), load(gate[c]), load(up[c]));
      dgate[c] = store<T>(gradient.gate);
      dup[c] = store<T>(gradient.up);
    }
  }

  template <typename T>
  ATHANOR_KERNEL_INLINE static void run(const T* dy, const T* gate_up, std::int64_t rows, std::int64_t ffn,
                                        T* dgate_up) {
    for (std::int64_t r = 0; r < rows; ++r) {
      row(dy + r * ffn, gate_up + 2 * r * ffn, gate_up + (2 * r + 1) * ffn, ffn, dgate_up + 2 * r * ffn,
          dgate_up + (2 * r + 1) * ffn);
    }
  }
};

}  // namespace

template <typename T>
void swiglu_forward(const T* gate_up, std::int64_t rows, std::int64_t ffn, T* y) {
  dispatch<SwigluForward>(gate_up, rows, ffn, y);
}

template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, std::int64_t rows, std::int64_t ffn, T* dgate_up) {
  dispatch<SwigluBackward>(dy, gate_up, rows, ffn, dgate_up);
}

#define ATHANOR_INSTANTIATE(T)                                               \
  template void swiglu_forward<T>(const T*, std::int64_t, std::int64_t, T*); \
  template void swiglu_backward<T>(const T*, const T*, std::int64_t, std::int64_t, T*);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
