// CUDA's and cuBLAS' status codes as errors. Only for files that are compiled with CUDA.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "base/error.hpp"

namespace athanor::device {

/// Throws DeviceError with the call's text, place and cause unless `status` is success. Clears CUDA's last
/// error.
void check_cuda(cudaError_t status, const char* call, const char* file, int line);
void check_cublas(cublasStatus_t status, const char* call, const char* file, int line);

/// For destructors and clean-up: logs instead of throwing. A driver that shuts down at the end is no error.
void warn_cuda(cudaError_t status, const char* call) noexcept;

}  // namespace athanor::device

#define ATHANOR_CUDA_CALL(call) ::athanor::device::check_cuda((call), #call, __FILE__, __LINE__)
#define ATHANOR_CUBLAS_CALL(call) ::athanor::device::check_cublas((call), #call, __FILE__, __LINE__)
#define ATHANOR_CUDA_WARN(call) ::athanor::device::warn_cuda((call), #call)
