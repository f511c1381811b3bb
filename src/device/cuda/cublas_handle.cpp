#include "device/cublas_handle.hpp"

#include <cublasLt.h>
#include <cublas_v2.h>

#include <utility>

#include "device/cuda/check.hpp"

namespace athanor::device {

CublasHandle::CublasHandle(const Stream& stream, const CublasOptions& options)
    : workspace_(options.workspace_bytes) {
  ATHANOR_CUBLAS_CALL(cublasCreate(&blas_));
  try {
    ATHANOR_CUBLAS_CALL(cublasLtCreate(&blas_lt_));
    ATHANOR_CUBLAS_CALL(cublasSetMathMode(
        blas_,
        static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
    set_stream(stream);
  } catch (...) {
    if (blas_lt_ != nullptr) {
      cublasLtDestroy(blas_lt_);
    }
    cublasDestroy(blas_);
    throw;
  }
}

CublasHandle::~CublasHandle() {
  if (blas_lt_ != nullptr) {
    cublasLtDestroy(blas_lt_);
  }
  if (blas_ != nullptr) {
    cublasDestroy(blas_);
  }
}

CublasHandle::CublasHandle(CublasHandle&& other) noexcept
    : blas_(std::exchange(other.blas_, nullptr)),
      blas_lt_(std::exchange(other.blas_lt_, nullptr)),
      workspace_(std::move(other.workspace_)),
      stream_(other.stream_) {}

CublasHandle& CublasHandle::operator=(CublasHandle&& other) noexcept {
  std::swap(blas_, other.blas_);
  std::swap(blas_lt_, other.blas_lt_);
  std::swap(workspace_, other.workspace_);
  std::swap(stream_, other.stream_);
  return *this;
}

void CublasHandle::set_stream(const Stream& stream) {
  ATHANOR_CUBLAS_CALL(cublasSetStream(blas_, stream.handle()));
  // cublasSetStream forgets the workspace.
  ATHANOR_CUBLAS_CALL(cublasSetWorkspace(blas_, workspace_.data(), workspace_.size()));
  stream_ = stream.handle();
}

}  // namespace athanor::device
