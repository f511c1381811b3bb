#include "kernels/detail/tensor_kernel_sets.hpp"

namespace athanor::kernels::detail {

const TensorKernels* cuda_kernels_if_built() {
  return &cuda_kernels();
}

}  // namespace athanor::kernels::detail
