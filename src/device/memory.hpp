// Bytes: pinned host memory, device memory of our own, copies between them, and the pool behind the tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "device/stream.hpp"

namespace athanor::device {

/// Host memory that a GPU copies from and to at full speed and asynchronously (page-locked and mapped for all
/// devices of the process); without CUDA ordinary memory at the same alignment. Zeroed. Move-only.
class PinnedBuffer {
 public:
  /// In bytes; both kinds of memory start on a page.
  static constexpr std::size_t alignment = 4096;

  PinnedBuffer() = default;
  /// Throws DeviceError (CUDA) or std::bad_alloc.
  explicit PinnedBuffer(std::size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Memory of the current device that lives long: workspaces, tables. Allocating and freeing it may wait for
/// the device, so neither belongs into a step; tensors come from the pool below. Without CUDA host memory.
/// Move-only.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Queues a copy of `bytes` between any two of host, pinned and device memory; the direction follows from the
/// addresses. Only copies from and to pinned or device memory overlap with the host. Done on return without
/// CUDA.
void copy_async(void* to, const void* from, std::size_t bytes, const Stream& stream);

/// The pool of the tensors' memory: LibTorch's caching allocator, because every tensor of a step comes from
/// there.
struct MemoryPoolOptions {
  /// Share of a GPU's memory that the pool may take, in (0, 1]: what is left is for NCCL, cuBLAS and the
  /// context.
  double fraction = 0.92;
  /// Segments that grow in place instead of new ones: less fragmentation when shapes change from step to
  /// step, as the token counts of experts do.
  bool expandable_segments = true;
};

/// Sets the pool up; after Device::take_gpu() and before the first tensor there. Throws ConfigError for a
/// fraction outside (0, 1]. Checks the options and does nothing else without CUDA.
void configure_memory_pool(const MemoryPoolOptions& options);

/// What the pool of the current device has handed out and taken from the driver; zeros without CUDA.
struct PoolUse {
  std::int64_t allocated_bytes = 0;
  std::int64_t peak_allocated_bytes = 0;
  std::int64_t reserved_bytes = 0;
  std::int64_t peak_reserved_bytes = 0;
  std::int64_t retries = 0;  ///< allocations that succeeded only after cached memory was given back
};
PoolUse pool_use();

}  // namespace athanor::device
