#include "train/bench_gpu_kernels.hpp"

#include "device/availability.hpp"

namespace athanor::train {

std::vector<KernelFigure> bench_gpu_kernels(const BenchKernelsOptions& /*options*/,
                                            const parallel::Communicator& /*role*/) {
  device::require_gpus(device::query_availability(), 0);  // throws: this is a build without CUDA
  return {};
}

}  // namespace athanor::train
