#include "kernels/bodies/reduce.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void sum_of_squares(const T* x, std::int64_t n, double* partial, double* out, device::StreamHandle stream) {
  launch_rows(bodies::SquaresOfPart<T>{x, n, bodies::ceil_divide(n, reduce_parts), partial}, reduce_parts,
              stream, "sum_of_squares");
  launch_rows(bodies::SumOfParts{partial, out}, 1, stream, "sum_of_squares");
}

template <typename T>
void squares_of_parts(const T* x, std::int64_t n, std::int64_t part_size, double* sums,
                      device::StreamHandle stream) {
  launch_rows(bodies::SquaresOfPart<T>{x, n, part_size, sums}, bodies::ceil_divide(n, part_size), stream,
              "squares_of_parts");
}

template <typename T>
void find_nonfinite(const T* x, std::int64_t n, std::int32_t* found, device::StreamHandle stream) {
  launch_elements(bodies::NonfiniteElement<T>{x, found}, n, stream, "find_nonfinite");
}

#define ATHANOR_INSTANTIATE(T)                                                                            \
  template void sum_of_squares<T>(const T*, std::int64_t, double*, double*, device::StreamHandle);        \
  template void squares_of_parts<T>(const T*, std::int64_t, std::int64_t, double*, device::StreamHandle); \
  template void find_nonfinite<T>(const T*, std::int64_t, std::int32_t*, device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
