#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>
#include <utility>

#include "support/emulated_cuda/emulated_cuda.hpp"
#include "support/emulated_cuda/fibers.hpp"

namespace athanor::emulated_cuda {

DeviceMemory::DeviceMemory(std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t used = (bytes + page - 1) / page * page;
  pages_ = map_before_guard(used);
  mapped_bytes_ = used + page;
  data_ = pages_ + (used - bytes) / 16 * 16;
  fill_with_poison(data_, (used - static_cast<std::size_t>(data_ - pages_)) / 4, nan_poison);
}

DeviceMemory::~DeviceMemory() {
  if (pages_ != nullptr) {
    ::munmap(pages_, mapped_bytes_);
  }
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept {
  *this = std::move(other);
}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(pages_, other.pages_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  return *this;
}

}  // namespace athanor::emulated_cuda
