#include "kernels/grouped_blas.hpp"

#include <cublas_v2.h>

#include <type_traits>
#include <vector>

#include "device/cuda/check.hpp"
#include "kernels/cuda/addresses.hpp"
#include "kernels/cuda/gemm_plan.hpp"

namespace athanor::kernels::cuda {
namespace {

template <typename T>
constexpr cudaDataType_t data_type() {
  if constexpr (std::is_same_v<T, double>) {
    return CUDA_R_64F;
  } else if constexpr (std::is_same_v<T, float>) {
    return CUDA_R_32F;
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    return CUDA_R_16F;
  } else {
    return CUDA_R_16BF;
  }
}

template <typename T>
constexpr cublasComputeType_t compute_type() {
  return std::is_same_v<T, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
}

cublasOperation_t operation(bool transpose) {
  return transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
}

template <typename T, typename C>
struct Operands {
  const T* a;
  const T* b;
  C* c;
  accumulation_t<T> beta;
};

bool starts_aligned(const void* a, const void* b, const void* c) {
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  return (address(a) | address(b) | address(c)) % 16 == 0;
}

/// One call for every group.
template <typename T, typename C>
void multiply_each(const device::CublasHandle& blas, const GroupedPlan& plan, const Operands<T, C>& with) {
  const accumulation_t<T> alpha = 1;
  for (const ColumnMajorProduct& p : plan.products) {
    ATHANOR_CUBLAS_CALL(cublasGemmEx(
        blas.blas(), operation(plan.transpose_a), operation(plan.transpose_b), p.m, p.n, p.k, &alpha,
        with.a + p.a_offset, data_type<T>(), p.lda, with.b + p.b_offset, data_type<T>(), p.ldb, &with.beta,
        with.c + p.c_offset, data_type<C>(), p.ldc, compute_type<T>(), CUBLAS_GEMM_DEFAULT));
  }
}

/// The plan's numbers as the arrays of the grouped call: one product a group.
struct GroupArrays {
  std::vector<cublasOperation_t> transpose_a, transpose_b;
  std::vector<int> m, n, k, lda, ldb, ldc, size;

  explicit GroupArrays(const GroupedPlan& plan)
      : transpose_a(plan.products.size(), operation(plan.transpose_a)),
        transpose_b(plan.products.size(), operation(plan.transpose_b)),
        size(plan.products.size(), 1) {
    for (const ColumnMajorProduct& p : plan.products) {
      m.push_back(p.m);
      n.push_back(p.n);
      k.push_back(p.k);
      lda.push_back(p.lda);
      ldb.push_back(p.ldb);
      ldc.push_back(p.ldc);
    }
  }
};

/// Writes the addresses of one operand of all products.
const void** write_table(const GroupedPlan& plan, std::int64_t ColumnMajorProduct::*offset,
                         std::size_t element_bytes, const void* base, const void** addresses,
                         device::StreamHandle stream) {
  std::vector<std::int64_t> bytes;
  for (const ColumnMajorProduct& p : plan.products) {
    bytes.push_back(p.*offset * static_cast<std::int64_t>(element_bytes));
  }
  write_addresses(base, bytes, addresses, stream);
  return addresses + plan.products.size();
}

/// One call for all groups.
template <typename T>
void multiply_together(const device::CublasHandle& blas, const GroupedPlan& plan, const Operands<T, T>& with,
                       void* table) {
  using A = accumulation_t<T>;
  const GroupArrays arrays(plan);
  const std::vector<A> alpha(plan.products.size(), A(1)), beta(plan.products.size(), with.beta);
  const auto a = static_cast<const void**>(table);
  const auto b = write_table(plan, &ColumnMajorProduct::a_offset, sizeof(T), with.a, a, blas.stream());
  const auto c = write_table(plan, &ColumnMajorProduct::b_offset, sizeof(T), with.b, b, blas.stream());
  write_table(plan, &ColumnMajorProduct::c_offset, sizeof(T), with.c, c, blas.stream());
  ATHANOR_CUBLAS_CALL(cublasGemmGroupedBatchedEx(
      blas.blas(), arrays.transpose_a.data(), arrays.transpose_b.data(), arrays.m.data(), arrays.n.data(),
      arrays.k.data(), alpha.data(), a, data_type<T>(), arrays.lda.data(), b, data_type<T>(),
      arrays.ldb.data(), beta.data(), const_cast<void**>(c), data_type<T>(), arrays.ldc.data(),
      blas_size(static_cast<std::int64_t>(arrays.size.size())), arrays.size.data(), compute_type<T>()));
}

template <typename T, typename C>
void multiply(const device::CublasHandle& blas, const GroupedPlan& plan, const Operands<T, C>& with,
              void* table) {
  if constexpr (std::is_same_v<T, C>) {
    if (plan.products.size() > 1 && is_aligned(plan, sizeof(T), sizeof(C)) &&
        starts_aligned(with.a, with.b, with.c)) {
      return multiply_together(blas, plan, with, table);
    }
  }
  multiply_each(blas, plan, with);
}

}  // namespace

template <typename T>
void grouped_linear(const device::CublasHandle& blas, const T* x, const T* w, const GroupedShape& shape,
                    void* table, T* y) {
  multiply<T, T>(blas, plan_linear(shape), {w, x, y, 0}, table);
}

template <typename T>
void grouped_linear_data_gradient(const device::CublasHandle& blas, const T* dy, const T* w,
                                  const GroupedShape& shape, void* table, T* dx) {
  multiply<T, T>(blas, plan_data_gradient(shape), {w, dy, dx, 0}, table);
}

template <typename T, typename C>
void grouped_linear_weight_gradient(const device::CublasHandle& blas, const T* dy, const T* x,
                                    const GroupedShape& shape, GemmMode mode, void* table, C* dw) {
  const GroupedPlan plan = plan_weight_gradient(shape);
  const auto matrix_bytes = static_cast<std::size_t>(shape.in * shape.out) * sizeof(C);
  for (const std::int64_t offset : plan.empty) {
    if (mode == GemmMode::overwrite && matrix_bytes > 0) {
      ATHANOR_CUDA_CALL(cudaMemsetAsync(dw + offset, 0, matrix_bytes, blas.stream()));
    }
  }
  multiply<T, C>(blas, plan, {x, dy, dw, static_cast<accumulation_t<T>>(mode == GemmMode::add ? 1 : 0)},
                 table);
}

#define ATHANOR_INSTANTIATE_WEIGHT(T, C)                                                              \
  template void grouped_linear_weight_gradient<T, C>(const device::CublasHandle&, const T*, const T*, \
                                                     const GroupedShape&, GemmMode, void*, C*);
#define ATHANOR_INSTANTIATE(T)                                                                          \
  template void grouped_linear<T>(const device::CublasHandle&, const T*, const T*, const GroupedShape&, \
                                  void*, T*);                                                           \
  template void grouped_linear_data_gradient<T>(const device::CublasHandle&, const T*, const T*,        \
                                                const GroupedShape&, void*, T*);                        \
  ATHANOR_INSTANTIATE_WEIGHT(T, T)
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
ATHANOR_INSTANTIATE_WEIGHT(c10::BFloat16, float)
ATHANOR_INSTANTIATE_WEIGHT(c10::Half, float)
#undef ATHANOR_INSTANTIATE
#undef ATHANOR_INSTANTIATE_WEIGHT

}  // namespace athanor::kernels::cuda
