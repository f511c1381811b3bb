#include "device/availability.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <array>

#include "base/error.hpp"

namespace athanor::device {
namespace {

std::string words(cudaError_t status) {
  static_cast<void>(cudaGetLastError());
  return fmt::format("{}: {}", cudaGetErrorName(status), cudaGetErrorString(status));
}

}  // namespace

bool compiled_with_cuda() noexcept {
  return true;
}

Availability query_availability() {
  Availability found;
  found.compiled = true;
  static_cast<void>(cudaRuntimeGetVersion(&found.runtime_version));
  if (const cudaError_t status = cudaDriverGetVersion(&found.driver_version); status != cudaSuccess) {
    found.cause = words(status);
    return found;
  }
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    found.cause = words(status);
    return found;
  }
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, index); status != cudaSuccess) {
      found.cause = fmt::format("GPU {}: {}", index, words(status));
      found.gpus.clear();
      return found;
    }
    std::array<char, 32> bus{};
    static_cast<void>(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), index));
    found.gpus.push_back({properties.name, 10 * properties.major + properties.minor,
                          static_cast<std::int64_t>(properties.totalGlobalMem), bus.data()});
  }
  return found;
}

void load_tensor_library() {
  // Lazily bound: what LibTorch links but this program never calls need not exist.
  if (::dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_GLOBAL) == nullptr) {
    const char* reason = ::dlerror();
    throw base::ConfigError(
        "LibTorch's CUDA library cannot be loaded ({}): install the libraries that it names with "
        "scripts/install_dependencies.sh --cuda, or run on the CPU with run.device=cpu",
        reason == nullptr ? "the loader gave no reason" : reason);
  }
}

}  // namespace athanor::device
