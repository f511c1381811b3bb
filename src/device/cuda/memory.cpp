#include "device/memory.hpp"

#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "device/cuda/check.hpp"
#include "device/detail/pool_options.hpp"

namespace athanor::device {

PinnedBuffer::PinnedBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes > 0) {
    void* data = nullptr;
    ATHANOR_CUDA_CALL(cudaHostAlloc(&data, bytes, cudaHostAllocPortable));
    std::memset(data, 0, bytes);
    data_ = static_cast<std::byte*>(data);
  }
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) {
    ATHANOR_CUDA_WARN(cudaFreeHost(data_));
  }
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes > 0) {
    void* data = nullptr;
    ATHANOR_CUDA_CALL(cudaMalloc(&data, bytes));
    data_ = static_cast<std::byte*>(data);
  }
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) {
    ATHANOR_CUDA_WARN(cudaFree(data_));
  }
}

void copy_async(void* to, const void* from, std::size_t bytes, const Stream& stream) {
  if (bytes > 0) {
    ATHANOR_CUDA_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.handle()));
  }
}

void configure_memory_pool(const MemoryPoolOptions& options) {
  detail::validate(options);
  c10::CachingAllocator::setAllocatorSettings(options.expandable_segments ? "expandable_segments:True"
                                                                          : "expandable_segments:False");
  c10::cuda::CUDACachingAllocator::setMemoryFraction(options.fraction, c10::cuda::current_device());
}

PoolUse pool_use() {
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(c10::cuda::current_device());
  constexpr auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return {.allocated_bytes = stats.allocated_bytes[all].current,
          .peak_allocated_bytes = stats.allocated_bytes[all].peak,
          .reserved_bytes = stats.reserved_bytes[all].current,
          .peak_reserved_bytes = stats.reserved_bytes[all].peak,
          .retries = stats.num_alloc_retries};
}

}  // namespace athanor::device
