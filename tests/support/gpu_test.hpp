// What tests on a GPU share: the reason to skip, and arrays in device memory.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "device/availability.hpp"
#include "device/device.hpp"
#include "device/memory.hpp"
#include "device/stream.hpp"
#if defined(ATHANOR_EMULATED_CUDA)
#include "support/emulated_cuda/emulated_cuda.hpp"
#endif

namespace athanor::tests {

#if defined(ATHANOR_EMULATED_CUDA)

// Kernels run on the host, on a double of CUDA's runtime: there is nothing to ask for and nothing to take.
inline const std::string& why_no_gpu(int /*local_size*/ = 1) {
  static const std::string no_reason;
  return no_reason;
}
inline void take_gpu() {}
using DeviceMemory = emulated_cuda::DeviceMemory;

#else

/// Why tests of `local_size` ranks on this node cannot use GPUs, or an empty string. Asked once per process.
inline const std::string& why_no_gpu(int local_size = 1) {
  static const std::string reason = [local_size]() -> std::string {
    try {
      device::require_gpus(device::query_availability(), local_size);
      return {};
    } catch (const base::ConfigError& error) {
      return error.what();
    }
  }();
  return reason;
}

/// Makes the first GPU this thread's.
inline void take_gpu() {
  device::Device::take_gpu(0);
}
using DeviceMemory = device::DeviceBuffer;

#endif

/// An array of T in device memory; T is trivially copyable. Copies wait for `stream` alone.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count), buffer_(count * sizeof(T)) {}
  DeviceArray(std::span<const T> values, const device::Stream& stream) : DeviceArray(values.size()) {
    device::copy_async(data(), values.data(), values.size_bytes(), stream);
    stream.synchronize();
  }
  DeviceArray(const std::vector<T>& values, const device::Stream& stream)
      : DeviceArray(std::span<const T>(values), stream) {}

  T* data() const noexcept { return reinterpret_cast<T*>(buffer_.data()); }
  std::size_t size() const noexcept { return count_; }

  std::vector<T> to_host(const device::Stream& stream) const {
    std::vector<T> values(count_);
    device::copy_async(values.data(), data(), count_ * sizeof(T), stream);
    stream.synchronize();
    return values;
  }

 private:
  std::size_t count_ = 0;
  DeviceMemory buffer_;
};

}  // namespace athanor::tests

/// First line of a test (or SetUp) that needs a GPU: skips it, with the reason printed, where there is none.
#define ATHANOR_SKIP_WITHOUT_GPU()                  \
  if (!::athanor::tests::why_no_gpu().empty()) {    \
    GTEST_SKIP() << ::athanor::tests::why_no_gpu(); \
  }                                                 \
  static_cast<void>(0)
