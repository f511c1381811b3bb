#include "kernels/activation.hpp"

#include "kernels/bodies/activation.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void swiglu_forward(const T* gate_up, std::int64_t rows, std::int64_t ffn, T* y,
                    device::StreamHandle stream) {
  launch_rows(bodies::SwigluRow<T>{gate_up, ffn, y}, ffn == 0 ? 0 : rows, stream, "swiglu_forward");
}

template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, std::int64_t rows, std::int64_t ffn, T* dgate_up,
                     device::StreamHandle stream) {
  launch_rows(bodies::SwigluBackwardRow<T>{dy, gate_up, ffn, dgate_up}, ffn == 0 ? 0 : rows, stream,
              "swiglu_backward");
}

#define ATHANOR_INSTANTIATE(T)                                                                     \
  template void swiglu_forward<T>(const T*, std::int64_t, std::int64_t, T*, device::StreamHandle); \
  template void swiglu_backward<T>(const T*, const T*, std::int64_t, std::int64_t, T*, device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
