// No cuBLAS, but the status type that device/cuda/check.hpp names.
#pragma once

#define CUBLAS_VERSION 0
enum cublasStatus_t { CUBLAS_STATUS_SUCCESS };

inline const char* cublasGetStatusName(cublasStatus_t /*status*/) {
  return "none";
}
inline const char* cublasGetStatusString(cublasStatus_t /*status*/) {
  return "there is no cuBLAS";
}
