#include "kernels/detail/tensor_kernel_sets.hpp"

namespace athanor::kernels::detail {

const TensorKernels* cuda_kernels_if_built() {
  return nullptr;
}

}  // namespace athanor::kernels::detail
