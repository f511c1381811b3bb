#include "kernels/norm.hpp"

#include "kernels/bodies/norm.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void rms_norm_forward(const T* x, const T* weight, std::int64_t rows, std::int64_t width, double eps, T* y,
                      accumulation_t<T>* rstd, device::StreamHandle stream) {
  launch_rows(bodies::RmsNormRow<T>{x, weight, width, static_cast<accumulation_t<T>>(eps), y, rstd}, rows,
              stream, "rms_norm_forward");
}

template <typename T>
void rms_norm_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* rstd,
                       std::int64_t rows, std::int64_t width, T* dx, accumulation_t<T>* dweight,
                       accumulation_t<T>* partial, device::StreamHandle stream) {
  // First the weight's: dx may be dy.
  if (dweight != nullptr && rows > 0) {
    launch_columns(bodies::RmsNormWeightColumn<T>{dy, x, rstd, width}, rows, width, partial, dweight, stream,
                   "rms_norm_backward");
  }
  launch_rows(bodies::RmsNormBackwardRow<T>{dy, x, weight, rstd, width, dx}, rows, stream,
              "rms_norm_backward");
}

#define ATHANOR_INSTANTIATE(T)                                                                             \
  template void rms_norm_forward<T>(const T*, const T*, std::int64_t, std::int64_t, double, T*,            \
                                    accumulation_t<T>*, device::StreamHandle);                             \
  template void rms_norm_backward<T>(const T*, const T*, const T*, const accumulation_t<T>*, std::int64_t, \
                                     std::int64_t, T*, accumulation_t<T>*, accumulation_t<T>*,             \
                                     device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
