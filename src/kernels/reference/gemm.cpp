#include "kernels/gemm.hpp"

namespace athanor::kernels::reference {

template <typename T, typename C>
void gemm(const Operand<T>& a, const Operand<T>& b, const GemmShape& shape, GemmMode mode, C* c,
          std::int64_t c_stride) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t j = 0; j < shape.columns; ++j) {
      double sum = mode == GemmMode::add ? static_cast<double>(c[i * c_stride + j]) : 0.0;
      for (std::int64_t k = 0; k < shape.depth; ++k) {
        sum += static_cast<double>(a.data[i * a.row_stride + k * a.column_stride]) *
               static_cast<double>(b.data[k * b.row_stride + j * b.column_stride]);
      }
      c[i * c_stride + j] = static_cast<C>(static_cast<float>(sum));
    }
  }
}

#define ATHANOR_INSTANTIATE(T, C)                                                                \
  template void gemm<T, C>(const Operand<T>&, const Operand<T>&, const GemmShape&, GemmMode, C*, \
                           std::int64_t);
ATHANOR_INSTANTIATE(float, float)
ATHANOR_INSTANTIATE(c10::BFloat16, float)
ATHANOR_INSTANTIATE(c10::BFloat16, c10::BFloat16)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::reference
