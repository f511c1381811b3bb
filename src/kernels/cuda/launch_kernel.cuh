// The one place that launches kernels and names a block's shared memory. It has no syntax of nvcc's own, so
// that a C++ compiler takes the kernels too, against the tests' double of CUDA's runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/cuda/launch.hpp"

namespace athanor::kernels::cuda {

struct KernelShape {
  std::int64_t blocks = 0;
  dim3 threads;
  std::size_t shared_bytes = 0;  ///< of a block, what block_memory() points to
};

/// Queues kernel(arguments...) on `stream`. Throws DeviceError with `name` where CUDA refuses the launch.
template <typename... Parameters, typename... Arguments>
void launch_kernel(void (*kernel)(Parameters...), const KernelShape& shape, device::StreamHandle stream,
                   const char* name, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, arguments...));  // check_launch asks for what it says
  check_launch(name);
}

/// All shared memory of the calling thread's block, aligned to 16 bytes, with any content at first. Kernels
/// declare none besides: what they have is what their launch asked for.
__device__ __forceinline__ void* block_memory() {
  extern __shared__ uint4 words_of_block[];
  return words_of_block;
}

}  // namespace athanor::kernels::cuda
