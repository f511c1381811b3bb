// What the tests of CUDA kernels share: a stream, arrays on both sides, and comparison with the host's run of
// the same bodies. Bits must agree, except where the library's exp and log of f64 come in.
#pragma once

#include <optional>

#include "kernels/bodies/team.hpp"
#include "kernels/twin_cases.hpp"
#include "support/gpu_test.hpp"

namespace athanor::tests {

/// Skips without a device; has a stream of its own, so that a kernel on another one is noticed.
class GpuKernels : public ::testing::Test {
 protected:
  void SetUp() override {
    ATHANOR_SKIP_WITHOUT_GPU();
    take_gpu();
    stream_.emplace();
  }
  device::StreamHandle stream() const { return stream_->handle(); }

  /// A vector's copy on the device.
  template <typename T>
  DeviceArray<T> put(const std::vector<T>& values) const {
    return DeviceArray<T>(values, *stream_);
  }
  /// Back on the host, once the stream's work is done.
  template <typename T>
  std::vector<T> get(const DeviceArray<T>& array) const {
    return array.to_host(*stream_);
  }

 private:
  std::optional<device::Stream> stream_;
};

/// The same bits, or for f64 what exp and log leave open.
template <typename T>
void expect_twin(const std::vector<T>& actual, const std::vector<T>& expected, const char* what) {
  if constexpr (std::is_same_v<T, double>) {
    expect_near(actual, expected, 1e-14, what);
  } else {
    expect_same(actual, expected, what);
  }
}

}  // namespace athanor::tests
