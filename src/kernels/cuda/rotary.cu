#include "kernels/bodies/columns.hpp"
#include "kernels/bodies/rotary.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void rotary(const T* x, const accumulation_t<T>* cos, const accumulation_t<T>* sin, const HeadsShape& shape,
            RotaryDirection direction, T* y, device::StreamHandle stream) {
  const accumulation_t<T> sign = direction == RotaryDirection::forward ? 1 : -1;
  launch_rows(bodies::RotaryHead<T>{x, cos, sin, shape, sign, y}, shape.tokens * shape.heads, stream,
              "rotary");
}

template <typename T>
void head_norm_rotary_forward(const T* x, const T* weight, const accumulation_t<T>* cos,
                              const accumulation_t<T>* sin, const HeadsShape& shape, double eps, T* y,
                              accumulation_t<T>* rstd, device::StreamHandle stream) {
  launch_rows(
      bodies::HeadNormRotary<T>{x, weight, cos, sin, shape, static_cast<accumulation_t<T>>(eps), y, rstd},
      shape.tokens * shape.heads, stream, "head_norm_rotary_forward");
}

template <typename T>
void head_norm_rotary_backward(const T* dy, const T* x, const T* weight, const accumulation_t<T>* cos,
                               const accumulation_t<T>* sin, const accumulation_t<T>* rstd,
                               const HeadsShape& shape, T* dx, accumulation_t<T>* dweight,
                               accumulation_t<T>* partial, device::StreamHandle stream) {
  const std::int64_t heads = shape.tokens * shape.heads;
  if (dweight != nullptr && heads > 0) {
    launch_columns(bodies::HeadNormWeightColumn<T>{dy, x, cos, sin, rstd, shape}, heads, shape.head_dim,
                   partial, dweight, stream, "head_norm_rotary_backward");
  }
  launch_rows(bodies::HeadNormRotaryBackward<T>{dy, x, weight, cos, sin, rstd, shape, dx}, heads, stream,
              "head_norm_rotary_backward");
}

#define ATHANOR_INSTANTIATE(T)                                                                              \
  template void rotary<T>(const T*, const accumulation_t<T>*, const accumulation_t<T>*, const HeadsShape&,  \
                          RotaryDirection, T*, device::StreamHandle);                                       \
  template void head_norm_rotary_forward<T>(const T*, const T*, const accumulation_t<T>*,                   \
                                            const accumulation_t<T>*, const HeadsShape&, double, T*,        \
                                            accumulation_t<T>*, device::StreamHandle);                      \
  template void head_norm_rotary_backward<T>(const T*, const T*, const T*, const accumulation_t<T>*,        \
                                             const accumulation_t<T>*, const accumulation_t<T>*,            \
                                             const HeadsShape&, T*, accumulation_t<T>*, accumulation_t<T>*, \
                                             device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
