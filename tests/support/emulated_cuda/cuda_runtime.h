// A test double of what the kernels use of CUDA's runtime, for a C++ compiler: blocks run one after another,
// the threads of a block as fibers in an order that a seed gives. Found in place of CUDA's own header by the
// tests of kernels in builds without CUDA; never installed. See emulated_cuda.hpp for what it checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
// Fits `extern __shared__ T x[]`, a block's dynamic memory. Any other variable does not compile: the double
// could neither poison it nor look for writes past its end.
#define __shared__ __attribute__((weak))

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
  unsigned x, y, z;
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorCudartUnloading,
  cudaErrorInvalidConfiguration,
  cudaErrorNoKernelImageForDevice,
  cudaErrorECCUncorrectable,
};
const char* cudaGetErrorName(cudaError_t status);
const char* cudaGetErrorString(cudaError_t status);
/// What the last refused launch was refused for; forgets it.
cudaError_t cudaGetLastError();

using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  const void* attrs;
  unsigned numAttrs;
};

namespace athanor::emulated_cuda {

/// Runs thread(context) for every thread of the launch, or refuses it. `kernel` and its type name it in
/// reports.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::type_info& type,
                   void (*thread)(const void* context), const void* context);

using Place = std::source_location;
void block_barrier(const Place& place);
void warp_barrier(unsigned mask, const Place& place);
/// What lane `from` of the warp brought to the same shuffle; the caller's own of none (32 and above).
std::uint32_t shuffle(unsigned mask, std::uint32_t word, unsigned from, const Place& place);
/// The caller's place in its warp.
unsigned lane();
/// Lets other threads go first, now and then.
void disturb();

}  // namespace athanor::emulated_cuda

/// Done when it returns.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "parameters are copied as bytes");
  static_assert((sizeof(Parameters) + ... + 0) <= 32764, "more parameters than a launch takes");
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call(kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
  const auto thread = [](const void* context) {
    std::apply(static_cast<const Call*>(context)->first, static_cast<const Call*>(context)->second);
  };
  return athanor::emulated_cuda::launch(*config, reinterpret_cast<const void*>(kernel), typeid(kernel),
                                        thread, &call);
}

inline void __syncthreads(const std::source_location& place = std::source_location::current()) {
  athanor::emulated_cuda::block_barrier(place);
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       const std::source_location& place = std::source_location::current()) {
  athanor::emulated_cuda::warp_barrier(mask, place);
}
inline std::uint32_t __shfl_sync(unsigned mask, std::uint32_t word, int from,
                                 const std::source_location& place = std::source_location::current()) {
  return athanor::emulated_cuda::shuffle(mask, word, static_cast<unsigned>(from) % 32, place);
}
inline std::uint32_t __shfl_down_sync(unsigned mask, std::uint32_t word, unsigned step,
                                      const std::source_location& place = std::source_location::current()) {
  return athanor::emulated_cuda::shuffle(mask, word, athanor::emulated_cuda::lane() + step, place);
}

template <typename T>
T atomicAdd(T* sum, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>, "sums of other numbers would depend on the order");
  athanor::emulated_cuda::disturb();
  const T before = *sum;
  *sum = static_cast<T>(before + value);
  return before;
}
