#include "kernels/bodies/distillation.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void dense_statistics(const T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                      const std::uint8_t* flags, const accumulation_t<T>* inverse_t, std::int64_t rows,
                      std::int64_t vocab, Divergence loss, DenseStatistics<accumulation_t<T>>* statistics,
                      device::StreamHandle stream) {
  launch_rows(
      bodies::DenseStatisticsRow<T>{student, teacher, labels, flags, inverse_t, vocab, loss, statistics},
      rows, stream, "dense_statistics");
}

template <typename T>
void divergence_sums(const T* student, const accumulation_t<T>* teacher, const std::uint8_t* flags,
                     const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows, std::int64_t vocab,
                     Divergence loss, accumulation_t<T> parameter, DivergenceSums<accumulation_t<T>>* sums,
                     device::StreamHandle stream) {
  launch_rows(bodies::DivergenceSumsRow<T>{student, teacher, flags, rows_of, vocab, loss, parameter, sums},
              rows, stream, "divergence_sums");
}

template <typename T>
void dense_backward(T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                    const std::uint8_t* flags, const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows,
                    std::int64_t vocab, Divergence loss, accumulation_t<T> parameter,
                    device::StreamHandle stream) {
  launch_rows(bodies::DenseBackwardRow<T>{student, teacher, labels, flags, rows_of, vocab, loss, parameter},
              vocab == 0 ? 0 : rows, stream, "dense_backward");
}

template <typename T>
void sparse_statistics(T* student, const SparseTeacher<accumulation_t<T>>& teacher,
                       const std::int64_t* labels, const std::uint8_t* flags,
                       const accumulation_t<T>* inverse_t, std::int64_t rows, std::int64_t vocab,
                       SparseStatistics<accumulation_t<T>>* statistics, device::StreamHandle stream) {
  launch_rows(bodies::SparseStatisticsRow<T>{student, teacher, labels, flags, inverse_t, vocab, statistics},
              rows, stream, "sparse_statistics");
}

template <typename T>
void sparse_backward(T* student, const SparseTeacher<accumulation_t<T>>& teacher, const std::int64_t* labels,
                     const std::uint8_t* flags, const SparseRow<accumulation_t<T>>* rows_of,
                     std::int64_t rows, std::int64_t vocab, device::StreamHandle stream) {
  launch_rows(bodies::SparseBackwardRow<T>{student, teacher, labels, flags, rows_of, vocab},
              vocab == 0 ? 0 : rows, stream, "sparse_backward");
}

#define ATHANOR_INSTANTIATE(T)                                                                             \
  template void dense_statistics<T>(const T*, const accumulation_t<T>*, const std::int64_t*,               \
                                    const std::uint8_t*, const accumulation_t<T>*, std::int64_t,           \
                                    std::int64_t, Divergence, DenseStatistics<accumulation_t<T>>*,         \
                                    device::StreamHandle);                                                 \
  template void divergence_sums<T>(const T*, const accumulation_t<T>*, const std::uint8_t*,                \
                                   const DenseRow<accumulation_t<T>>*, std::int64_t, std::int64_t,         \
                                   Divergence, accumulation_t<T>, DivergenceSums<accumulation_t<T>>*,      \
                                   device::StreamHandle);                                                  \
  template void dense_backward<T>(T*, const accumulation_t<T>*, const std::int64_t*, const std::uint8_t*,  \
                                  const DenseRow<accumulation_t<T>>*, std::int64_t, std::int64_t,          \
                                  Divergence, accumulation_t<T>, device::StreamHandle);                    \
  template void sparse_statistics<T>(T*, const SparseTeacher<accumulation_t<T>>&, const std::int64_t*,     \
                                     const std::uint8_t*, const accumulation_t<T>*, std::int64_t,          \
                                     std::int64_t, SparseStatistics<accumulation_t<T>>*,                   \
                                     device::StreamHandle);                                                \
  template void sparse_backward<T>(T*, const SparseTeacher<accumulation_t<T>>&, const std::int64_t*,       \
                                   const std::uint8_t*, const SparseRow<accumulation_t<T>>*, std::int64_t, \
                                   std::int64_t, device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
