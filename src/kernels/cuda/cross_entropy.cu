#include "kernels/bodies/cross_entropy.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void softmax_statistics(const T* logits, const std::int64_t* labels, std::int64_t rows, std::int64_t vocab,
                        SoftmaxStatistics<accumulation_t<T>>* statistics, device::StreamHandle stream) {
  launch_rows(bodies::SoftmaxStatisticsRow<T>{logits, labels, vocab, statistics}, rows, stream,
              "softmax_statistics");
}

template <typename A>
void join_softmax_statistics(const SoftmaxStatistics<A>* statistics, std::int64_t slices, std::int64_t rows,
                             const bool* ignored, A* maximum, A* inverse_sum, A* loss,
                             device::StreamHandle stream) {
  launch_elements(bodies::JoinSoftmaxRow<A>{statistics, slices, rows, ignored, maximum, inverse_sum, loss},
                  rows, stream, "join_softmax_statistics");
}
template void join_softmax_statistics(const SoftmaxStatistics<float>*, std::int64_t, std::int64_t,
                                      const bool*, float*, float*, float*, device::StreamHandle);
template void join_softmax_statistics(const SoftmaxStatistics<double>*, std::int64_t, std::int64_t,
                                      const bool*, double*, double*, double*, device::StreamHandle);

template <typename T>
void cross_entropy_backward(T* logits, const std::int64_t* labels, const accumulation_t<T>* maximum,
                            const accumulation_t<T>* inverse_sum, std::int64_t rows, std::int64_t vocab,
                            accumulation_t<T> gradient_scale, device::StreamHandle stream) {
  launch_rows(bodies::CrossEntropyBackwardRow<T>{logits, labels, maximum, inverse_sum, vocab, gradient_scale},
              vocab == 0 ? 0 : rows, stream, "cross_entropy_backward");
}

#define ATHANOR_INSTANTIATE(T)                                                                      \
  template void softmax_statistics<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t,    \
                                      SoftmaxStatistics<accumulation_t<T>>*, device::StreamHandle); \
  template void cross_entropy_backward<T>(T*, const std::int64_t*, const accumulation_t<T>*,        \
                                          const accumulation_t<T>*, std::int64_t, std::int64_t,     \
                                          accumulation_t<T>, device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
