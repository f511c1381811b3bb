#include "device/memory.hpp"

#include <cstring>
#include <new>

#include "device/detail/pool_options.hpp"

namespace athanor::device {
namespace {

std::byte* allocate(std::size_t bytes) {
  if (bytes == 0) {
    return nullptr;
  }
  void* data = ::operator new(bytes, std::align_val_t(PinnedBuffer::alignment));
  std::memset(data, 0, bytes);
  return static_cast<std::byte*>(data);
}

void release(std::byte* data) {
  ::operator delete(data, std::align_val_t(PinnedBuffer::alignment));
}

}  // namespace

PinnedBuffer::PinnedBuffer(std::size_t bytes) : data_(allocate(bytes)), size_(bytes) {}

PinnedBuffer::~PinnedBuffer() {
  release(data_);
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) : data_(allocate(bytes)), size_(bytes) {}

DeviceBuffer::~DeviceBuffer() {
  release(data_);
}

void copy_async(void* to, const void* from, std::size_t bytes, const Stream& /*stream*/) {
  if (bytes > 0) {
    std::memcpy(to, from, bytes);
  }
}

void configure_memory_pool(const MemoryPoolOptions& options) {
  detail::validate(options);
}

PoolUse pool_use() {
  return {};
}

}  // namespace athanor::device
