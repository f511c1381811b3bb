#include "device/cuda/check.hpp"

#include <fmt/format.h>

#include "base/log.hpp"

namespace athanor::device {
namespace {

const char* advice(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return "lower batch.micro, raise the number of ranks, or look at --dry-run for what takes the memory";
    case cudaErrorNoKernelImageForDevice:
      return "build with this GPU's compute capability in CMAKE_CUDA_ARCHITECTURES";
    case cudaErrorECCUncorrectable:
      return "the GPU's memory is faulty: drain this node";
    default:
      return "run with CUDA_LAUNCH_BLOCKING=1 to see the kernel, or scripts/gpu_check.sh --sanitize to check "
             "this machine";
  }
}

}  // namespace

void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) {
    return;
  }
  static_cast<void>(cudaGetLastError());
  throw base::DeviceError("{}:{}: {} failed ({}: {}): {}", file, line, call, cudaGetErrorName(status),
                          cudaGetErrorString(status), advice(status));
}

void check_cublas(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw base::DeviceError(
        "{}:{}: {} failed ({}: {}): check shapes and alignment, and that cuBLAS {} suits this GPU", file,
        line, call, cublasGetStatusName(status), cublasGetStatusString(status), CUBLAS_VERSION);
  }
}

void warn_cuda(cudaError_t status, const char* call) noexcept {
  if (status == cudaSuccess || status == cudaErrorCudartUnloading) {
    return;
  }
  static_cast<void>(cudaGetLastError());
  try {
    base::log_local(base::LogLevel::warning,
                    fmt::format("{} failed while cleaning up ({}: {})", call, cudaGetErrorName(status),
                                cudaGetErrorString(status)));
  } catch (...) {  // a destructor has nobody to tell
    return;
  }
}

}  // namespace athanor::device
