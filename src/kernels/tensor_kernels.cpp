#include "kernels/tensor_kernels.hpp"

#include <atomic>

#include "base/error.hpp"
#include "kernels/detail/tensor_kernel_sets.hpp"

namespace athanor::kernels {
namespace {

std::atomic<const TensorKernels*> chosen_by_test = nullptr;

}  // namespace

const TensorKernels& kernels_of(const at::Tensor& tensor) {
  if (const TensorKernels* chosen = chosen_by_test.load(std::memory_order_relaxed); chosen != nullptr) {
    return *chosen;
  }
  if (tensor.is_cpu()) {
    return detail::cpu_kernels();
  }
  const TensorKernels* cuda = detail::cuda_kernels_if_built();
  ATHANOR_CHECK(cuda != nullptr && tensor.is_cuda(), "there are no kernels for tensors on {}",
                tensor.device().str());
  return *cuda;
}

TensorKernelsScope::TensorKernelsScope(const TensorKernels& kernels) {
  ATHANOR_CHECK(chosen_by_test.exchange(&kernels) == nullptr, "two choices of kernels at a time");
}

TensorKernelsScope::~TensorKernelsScope() {
  chosen_by_test.store(nullptr);
}

}  // namespace athanor::kernels
