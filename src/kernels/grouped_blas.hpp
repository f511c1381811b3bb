// Products of contiguous row ranges with one weight matrix each (the experts) on a GPU: the twin of
// grouped_gemm.hpp by cuBLAS, on device memory; and products of FP8 blocks.
//
// Legend: R rows sorted by group, e groups, D input width, F output width; all matrices dense and row-major.
#pragma once

#include <cstdint>
#include <span>

#include "device/cublas_handle.hpp"
#include "kernels/element.hpp"
#include "kernels/gemm.hpp"

namespace athanor::kernels {

struct GroupedShape {
  std::int64_t in = 0;                 ///< D
  std::int64_t out = 0;                ///< F
  std::span<const std::int64_t> rows;  ///< of each group, on the host; they sum to R and may be 0
};

/// Device memory that a grouped product needs for the addresses of its operands, in use until it is done.
constexpr std::int64_t grouped_table_bytes(std::int64_t groups) {
  return 3 * groups * static_cast<std::int64_t>(sizeof(void*));
}

/// What a product of FP8 blocks is made of.
enum class Fp8Scaling {
  none,       ///< no such products on this device
  block_128,  ///< f32 scales for 128 elements of a row (fp8.hpp): compute capability 9.0
  mx,         ///< powers of two for 32 elements of a row (mx.hpp): compute capability 10
};

// Defined in a build with CUDA only. Work is queued on the handle's stream and nothing waits for it; `table`
// has grouped_table_bytes(e). f32 is multiplied in f32, 16-bit numbers are summed in f32. Where cuBLAS has a
// call for all groups it is taken (operands of one type, 16-byte alignment of all rows), else a product for
// each group.
namespace cuda {

/// y[rows of g] = x[rows of g] @ w[g]^T: x [R, D], w [e, F, D] -> y [R, F].
template <typename T>
void grouped_linear(const device::CublasHandle& blas, const T* x, const T* w, const GroupedShape& shape,
                    void* table, T* y);

/// dx[rows of g] = dy[rows of g] @ w[g]: dy [R, F], w [e, F, D] -> dx [R, D].
template <typename T>
void grouped_linear_data_gradient(const device::CublasHandle& blas, const T* dy, const T* w,
                                  const GroupedShape& shape, void* table, T* dx);

/// dw[g] (+)= dy[rows of g]^T @ x[rows of g]: [e, F, D], of T or of its accumulation type C. A group without
/// rows is zeroed (overwrite) or left as it is (add).
template <typename T, typename C>
void grouped_linear_weight_gradient(const device::CublasHandle& blas, const T* dy, const T* x,
                                    const GroupedShape& shape, GemmMode mode, void* table, C* dw);

/// What this thread's device multiplies.
Fp8Scaling fp8_scaling();

/// e4m3 codes and their scales: of block_128 the transposed ones, [fp8_blocks(D), rows], see
/// transpose_fp8_scales(); of mx those of quantize_mx_blocks().
struct Fp8Operand {
  const std::uint8_t* codes = nullptr;
  const void* scales = nullptr;
};

/// scales [rows, blocks] -> [blocks, rows].
void transpose_fp8_scales(const float* scales, std::int64_t rows, std::int64_t blocks, float* transposed,
                          device::StreamHandle stream);

/// y [R, F], bf16 or f32, = x [R, D] @ w [F, D]^T by the tensor cores' FP8, summed in f32. D and F are
/// multiples of 16 (mx: of 32). `scaling` is fp8_scaling(); throws DeviceError where cuBLASLt has no such
/// product.
template <typename T>
void fp8_matmul(const device::CublasHandle& blas, Fp8Scaling scaling, const Fp8Operand& x,
                const Fp8Operand& w, std::int64_t rows, std::int64_t in, std::int64_t out, T* y);

}  // namespace cuda

}  // namespace athanor::kernels
