#include "kernels/detail/tensor_kernel_sets.hpp"
#include "kernels/detail/tensor_kernels_of.hpp"

namespace athanor::kernels::detail {

const TensorKernels& cpu_kernels() {
  static const TensorKernelsOf<device::DeviceKind::cpu> kernels;
  return kernels;
}

}  // namespace athanor::kernels::detail
