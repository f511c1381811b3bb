#include "support/watched_memory.hpp"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

namespace athanor::tests {
namespace {

constexpr std::size_t header_bytes = 64;  // keeps the alignment; holds the size

std::mutex listener_mutex;
std::function<void(const void*, std::size_t)> listener;

void free_watched(void* data) {
  if (data == nullptr) {
    return;
  }
  auto* raw = static_cast<std::byte*>(data) - header_bytes;
  {
    const std::lock_guard lock(listener_mutex);
    if (listener) {
      listener(data, *reinterpret_cast<const std::size_t*>(raw));
    }
  }
  std::free(raw);
}

class WatchedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, nullptr, &free_watched, c10::Device(c10::DeviceType::CPU)};
    }
    const std::size_t total = (bytes + header_bytes + 63) / 64 * 64;
    auto* raw = static_cast<std::byte*>(std::aligned_alloc(64, total));
    if (raw == nullptr) {
      throw std::bad_alloc();
    }
    *reinterpret_cast<std::size_t*>(raw) = bytes;
    void* data = raw + header_bytes;
    return {data, data, &free_watched, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_watched; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

void watch_tensor_memory() {
  static WatchedAllocator allocator;
  c10::SetCPUAllocator(&allocator, 2);
}

void set_memory_listener(std::function<void(const void*, std::size_t)> new_listener) {
  const std::lock_guard lock(listener_mutex);
  listener = std::move(new_listener);
}

}  // namespace athanor::tests
