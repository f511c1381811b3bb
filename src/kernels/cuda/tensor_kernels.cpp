#include "kernels/detail/tensor_kernel_sets.hpp"
#include "kernels/detail/tensor_kernels_of.hpp"

namespace athanor::kernels::detail {

const TensorKernels& cuda_kernels() {
  static const TensorKernelsOf<device::DeviceKind::cuda> kernels;
  return kernels;
}

}  // namespace athanor::kernels::detail
