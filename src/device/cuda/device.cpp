#include "device/device.hpp"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include "device/cuda/check.hpp"

namespace athanor::device {

Device Device::take_gpu(int local_rank) {
  const Device device(DeviceKind::cuda, local_rank);
  device.make_current();
  ATHANOR_CUDA_CALL(cudaFree(nullptr));  // makes the context now, so that a broken device shows at start
  c10::cuda::CUDACachingAllocator::init(
      c10::cuda::device_count());  // the pool, for who comes before any tensor
  return device;
}

void Device::make_current() const {
  if (is_cuda()) {
    ATHANOR_CUDA_CALL(cudaSetDevice(index_));
  }
}

Device::Memory Device::memory() const {
  Memory memory;
  if (is_cuda()) {
    make_current();
    ATHANOR_CUDA_CALL(cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes));
  }
  return memory;
}

}  // namespace athanor::device
