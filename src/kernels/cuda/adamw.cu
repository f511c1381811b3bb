#include "kernels/bodies/adamw.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename A, typename C>
void adamw_update(A* master, A* exp_avg, A* exp_avg_sq, const A* grad, std::int64_t n,
                  const AdamwScalars& scalars, C* copy, device::StreamHandle stream) {
  launch_elements(
      bodies::AdamwElement<A, C>{master, exp_avg, exp_avg_sq, grad, bodies::AdamwFactors<A>(scalars), copy},
      n, stream, "adamw_update");
}

template <typename A, typename C>
void convert_elements(const A* master, std::int64_t n, C* out, device::StreamHandle stream) {
  launch_elements(bodies::ConvertElement<A, C>{master, out}, n, stream, "convert_elements");
}

#define ATHANOR_INSTANTIATE(A, C)                                                               \
  template void adamw_update<A, C>(A*, A*, A*, const A*, std::int64_t, const AdamwScalars&, C*, \
                                   device::StreamHandle);                                       \
  template void convert_elements<A, C>(const A*, std::int64_t, C*, device::StreamHandle);
ATHANOR_INSTANTIATE(float, float)
ATHANOR_INSTANTIATE(float, c10::BFloat16)
ATHANOR_INSTANTIATE(float, c10::Half)
ATHANOR_INSTANTIATE(double, double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
