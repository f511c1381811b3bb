// Streams, memory, staging, cuBLAS and graphs on a real device.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "device/cublas_handle.hpp"
#include "device/cuda/check.hpp"
#include "device/graph.hpp"
#include "device/host_staging.hpp"
#include "support/gpu_test.hpp"

namespace athanor::device {
namespace {

using tests::DeviceArray;

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    ATHANOR_SKIP_WITHOUT_GPU();
    device_ = Device::take_gpu(0);
  }
  Device device_;
};

std::vector<float> ramp(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(i % 1000);
  }
  return values;
}

TEST_F(Gpu, MemoryIsThere) {
  EXPECT_TRUE(device_.is_cuda());
  EXPECT_GT(device_.memory().total_bytes, device_.memory().free_bytes / 2);
}

TEST_F(Gpu, AStreamWaitsForAnothersEvent) {
  const Stream first;
  const Stream second(StreamPriority::high);
  const std::vector<float> values = ramp(1 << 22);
  const DeviceArray<float> a(values, first);
  const DeviceArray<float> b(values.size());
  const DeviceArray<float> c(values.size());
  copy_async(b.data(), a.data(), values.size() * sizeof(float), first);
  Event copied(EventTiming::on);
  copied.record(first);
  second.wait_for(copied);
  copy_async(c.data(), b.data(), values.size() * sizeof(float), second);
  EXPECT_EQ(c.to_host(second), values);
  EXPECT_TRUE(copied.done());
  EXPECT_TRUE(second.idle());
}

TEST_F(Gpu, EventsMeasureTheDevice) {
  const Stream stream;
  Event start(EventTiming::on);
  Event end(EventTiming::on);
  const DeviceArray<float> a(std::size_t{1} << 24);
  start.record(stream);
  ATHANOR_CUDA_CALL(cudaMemsetAsync(a.data(), 0, a.size() * sizeof(float), stream.handle()));
  end.record(stream);
  end.synchronize();
  EXPECT_GT(end.milliseconds_since(start), 0.0);
}

TEST_F(Gpu, AFailedCallNamesCallAndCause) {
  try {
    ATHANOR_CUDA_CALL(cudaSetDevice(10000));
    FAIL() << "there is no such device";
  } catch (const base::DeviceError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("cudaSetDevice(10000)"), std::string::npos) << text;
    EXPECT_NE(text.find("cudaErrorInvalidDevice"), std::string::npos) << text;
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(Gpu, StagingCarriesEveryByteBothWays) {
  const Stream stream;
  const std::vector<float> values = ramp(100'003);
  const std::size_t bytes = values.size() * sizeof(float);
  const auto* source = reinterpret_cast<const std::byte*>(values.data());
  const DeviceArray<float> array(values.size());
  HostStaging staging({.slot_bytes = 65536});
  staging.to_device(array.data(), bytes, stream, [&](std::size_t offset, std::span<std::byte> piece) {
    std::copy_n(source + offset, piece.size(), piece.begin());
  });
  std::vector<float> back(values.size());
  staging.to_host(array.data(), bytes, stream, [&](std::size_t offset, std::span<const std::byte> piece) {
    std::copy(piece.begin(), piece.end(), reinterpret_cast<std::byte*>(back.data()) + offset);
  });
  EXPECT_EQ(back, values);
}

// C = A B in f32 for a size whose result is exact; column-major as cuBLAS has it.
TEST_F(Gpu, CublasMultipliesInFull32Bits) {
  constexpr int n = 64;
  const Stream stream;
  const CublasHandle handle(stream);
  std::vector<float> a(n * n, 0.0F);
  for (int i = 0; i < n; ++i) {
    a[static_cast<std::size_t>(i * n + i)] = 1.0F + 0x1p-20F;  // TF32 would drop the last bits
  }
  const std::vector<float> b(n * n, 1.0F);
  const DeviceArray<float> left(a, stream);
  const DeviceArray<float> right(b, stream);
  const DeviceArray<float> product(b.size());
  const float one = 1.0F;
  const float zero = 0.0F;
  ATHANOR_CUBLAS_CALL(cublasSgemm(handle.blas(), CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, left.data(), n,
                                  right.data(), n, &zero, product.data(), n));
  for (const float value : product.to_host(stream)) {
    ASSERT_EQ(value, 1.0F + 0x1p-20F);
  }
}

TEST_F(Gpu, AGraphRepeatsItsWorkOnNewValues) {
  const Stream stream;
  const std::vector<float> values = ramp(4096);
  const std::size_t bytes = values.size() * sizeof(float);
  const DeviceArray<float> in(values, stream);
  const DeviceArray<float> out(values.size());
  GraphCache cache({.warm_up_runs = 1});
  const auto body = [&] { copy_async(out.data(), in.data(), bytes, stream); };
  EXPECT_EQ(cache.run({4096}, stream, body), GraphRun::plain_warm_up);
  EXPECT_EQ(cache.run({4096}, stream, body), GraphRun::recorded);
  EXPECT_EQ(out.to_host(stream), values);
  const std::vector<float> others(values.size(), 7.0F);
  copy_async(in.data(), others.data(), bytes, stream);
  EXPECT_EQ(cache.run({4096}, stream, [] { FAIL() << "a replay runs nothing on the host"; }),
            GraphRun::replayed);
  EXPECT_EQ(out.to_host(stream), others);
}

TEST_F(Gpu, WorkThatWaitsForTheDeviceCannotBeRecorded) {
  const Stream stream;
  EXPECT_THROW(Graph::record(stream, {1}, [&] { stream.synchronize(); }), base::DeviceError);
  // The stream is usable again.
  const DeviceArray<float> a(ramp(16), stream);
  EXPECT_EQ(a.to_host(stream), ramp(16));
}

TEST_F(Gpu, ThePoolReportsItsUse) {
  configure_memory_pool({});
  EXPECT_GE(pool_use().reserved_bytes, pool_use().allocated_bytes);
}

}  // namespace
}  // namespace athanor::device
