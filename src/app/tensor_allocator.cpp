#include "app/tensor_allocator.hpp"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "base/error.hpp"
#include "base/memory.hpp"

namespace athanor::app {
namespace {

// In front of the tensor: what malloc gave.
constexpr std::size_t header_bytes = sizeof(void*);
// From here on a tensor may be what made the heap grow.
constexpr std::size_t large_bytes = 64 << 10;

void free_tensor(void* data) {
  if (data != nullptr) {
    std::free(static_cast<void**>(data)[-1]);
  }
}

class ReusingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* data = bytes == 0 ? nullptr : take(bytes);
    return {data, data, &free_tensor, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_tensor; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void* take(std::size_t bytes) {
    void* raw = std::malloc(bytes + c10::gAlignment + header_bytes);
    if (raw == nullptr) {
      throw base::InternalError(
          "no memory for a tensor of {} bytes (the machine has none left) use more ranks or machines, a "
          "smaller batch.micro, or model.recompute=true",
          bytes);
    }
    if (bytes >= large_bytes) {
      base::use_huge_pages();
    }
    const auto first = reinterpret_cast<std::uintptr_t>(raw) + header_bytes;
    const std::uintptr_t aligned = (first + c10::gAlignment - 1) / c10::gAlignment * c10::gAlignment;
    auto* data = reinterpret_cast<void*>(aligned);
    static_cast<void**>(data)[-1] = raw;
    return data;
  }
};

}  // namespace

void reuse_tensor_memory() {
  static ReusingAllocator allocator;
  c10::SetCPUAllocator(&allocator, 1);
}

}  // namespace athanor::app
