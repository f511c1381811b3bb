// Products of FP8 blocks by cuBLASLt.
#include <cublasLt.h>

#include <memory>

#include "base/error.hpp"
#include "device/cuda/check.hpp"
#include "kernels/cuda/gemm_plan.hpp"
#include "kernels/mx.hpp"

namespace athanor::kernels::cuda {
namespace {

/// Owns a descriptor of cuBLASLt.
template <typename T, cublasStatus_t (*destroy)(T)>
struct Destroy {
  using pointer = T;
  void operator()(T descriptor) const noexcept { destroy(descriptor); }
};
template <typename T, cublasStatus_t (*destroy)(T)>
using Owned = std::unique_ptr<T, Destroy<T, destroy>>;
using MatmulDescriptor = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

Layout layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns) {
  cublasLtMatrixLayout_t made = nullptr;
  ATHANOR_CUBLAS_CALL(cublasLtMatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(rows),
                                                 static_cast<std::uint64_t>(columns), rows));
  return Layout(made);
}

template <typename Value>
void set(const MatmulDescriptor& descriptor, cublasLtMatmulDescAttributes_t attribute, Value value) {
  ATHANOR_CUBLAS_CALL(cublasLtMatmulDescSetAttribute(descriptor.get(), attribute, &value, sizeof(value)));
}

/// y^T = (w^T)^T x^T with both scales along the depth.
MatmulDescriptor descriptor_of(Fp8Scaling scaling, const Fp8Operand& w, const Fp8Operand& x) {
  cublasLtMatmulDesc_t made = nullptr;
  ATHANOR_CUBLAS_CALL(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  MatmulDescriptor descriptor(made);
  set(descriptor, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(descriptor, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  const cublasLtMatmulMatrixScale_t mode = scaling == Fp8Scaling::mx
                                               ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0
                                               : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  set(descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
  set(descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
  set(descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w.scales);
  set(descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x.scales);
  return descriptor;
}

}  // namespace

Fp8Scaling fp8_scaling() {
  int device = 0, major = 0, minor = 0;
  ATHANOR_CUDA_CALL(cudaGetDevice(&device));
  ATHANOR_CUDA_CALL(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  ATHANOR_CUDA_CALL(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0 ? Fp8Scaling::block_128 : major == 10 ? Fp8Scaling::mx : Fp8Scaling::none;
}

template <typename T>
void fp8_matmul(const device::CublasHandle& blas, Fp8Scaling scaling, const Fp8Operand& x,
                const Fp8Operand& w, std::int64_t rows, std::int64_t in, std::int64_t out, T* y) {
  ATHANOR_CHECK(scaling != Fp8Scaling::none, "an FP8 product on a device that makes none");
  const std::int64_t multiple = scaling == Fp8Scaling::mx ? mx_block : 16;
  ATHANOR_CHECK(in % multiple == 0 && out % multiple == 0,
                "an FP8 product of widths {} and {}, no multiples of {}", in, out, multiple);
  if (rows == 0 || out == 0) {
    return;
  }
  const MatmulDescriptor product = descriptor_of(scaling, w, x);
  const Layout a = layout(CUDA_R_8F_E4M3, in, out), b = layout(CUDA_R_8F_E4M3, in, rows);
  const Layout c = layout(std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF, out, rows);
  cublasLtMatmulPreference_t made = nullptr;
  ATHANOR_CUBLAS_CALL(cublasLtMatmulPreferenceCreate(&made));
  const Preference preference(made);
  const std::size_t workspace_bytes = blas.workspace_bytes();
  ATHANOR_CUBLAS_CALL(cublasLtMatmulPreferenceSetAttribute(
      preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof(workspace_bytes)));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      blas.blas_lt(), product.get(), a.get(), b.get(), c.get(), c.get(), preference.get(), 1, &found, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || count == 0) {
    throw base::DeviceError(
        "an FP8 product of {} x {} by {} x {} is not made on this GPU (cuBLASLt {} has none with a scale for "
        "every 128 "
        "numbers here; compute capability 9.0 has); dequantise and multiply in bf16 instead",
        rows, in, in, out, cublasLtGetVersion());
  }
  ATHANOR_CUBLAS_CALL(status);
  const float one = 1.0f, zero = 0.0f;
  ATHANOR_CUBLAS_CALL(cublasLtMatmul(blas.blas_lt(), product.get(), &one, w.codes, a.get(), x.codes, b.get(),
                                     &zero, y, c.get(), y, c.get(), &found.algo, blas.workspace(),
                                     workspace_bytes, blas.stream()));
}

template void fp8_matmul<float>(const device::CublasHandle&, Fp8Scaling, const Fp8Operand&, const Fp8Operand&,
                                std::int64_t, std::int64_t, std::int64_t, float*);
template void fp8_matmul<c10::BFloat16>(const device::CublasHandle&, Fp8Scaling, const Fp8Operand&,
                                        const Fp8Operand&, std::int64_t, std::int64_t, std::int64_t,
                                        c10::BFloat16*);

}  // namespace athanor::kernels::cuda
