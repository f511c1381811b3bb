// Grouped products as cuBLAS wants them: column-major, so each row-major matrix is its transpose. Plain
// arithmetic, without CUDA.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.hpp"
#include "kernels/grouped_blas.hpp"

namespace athanor::kernels::cuda {

/// c [m, n] = op(a) op(b) in column-major order, depth k. Offsets are in elements.
struct ColumnMajorProduct {
  int m = 0, n = 0, k = 0;
  int lda = 0, ldb = 0, ldc = 0;
  std::int64_t a_offset = 0, b_offset = 0, c_offset = 0;
};

/// The products of all groups that have rows; op is the same for all.
struct GroupedPlan {
  bool transpose_a = false;
  bool transpose_b = false;
  std::vector<ColumnMajorProduct> products;
  std::vector<std::int64_t> empty;  ///< offsets in c of the groups without rows (weight gradient)
};

/// cuBLAS' sizes are int.
inline int blas_size(std::int64_t n) {
  ATHANOR_CHECK(n >= 0 && n <= 2147483647, "a matrix has {} rows or columns, more than cuBLAS takes", n);
  return static_cast<int>(n);
}

/// make(product, group, first row, rows) fills in what differs.
template <typename Make>
GroupedPlan plan_groups(const GroupedShape& shape, bool transpose_a, bool transpose_b, const Make& make) {
  GroupedPlan plan{transpose_a, transpose_b, {}, {}};
  const std::int64_t matrix = shape.in * shape.out;
  std::int64_t first = 0;
  for (std::size_t g = 0; g < shape.rows.size(); ++g) {
    const std::int64_t rows = shape.rows[g], weight = static_cast<std::int64_t>(g) * matrix;
    if (rows > 0 && matrix > 0) {
      plan.products.push_back(make(weight, first, rows));
    } else {
      plan.empty.push_back(weight);
    }
    first += rows;
  }
  return plan;
}

/// y^T [F, rows] = (w^T)^T x^T, a = w, b = x, c = y.
inline GroupedPlan plan_linear(const GroupedShape& s) {
  const int in = blas_size(s.in), out = blas_size(s.out);
  return plan_groups(s, true, false, [&](std::int64_t weight, std::int64_t first, std::int64_t rows) {
    return ColumnMajorProduct{out, blas_size(rows), in, in, in, out, weight, first * s.in, first * s.out};
  });
}

/// dx^T [D, rows] = w^T dy^T, a = w, b = dy, c = dx.
inline GroupedPlan plan_data_gradient(const GroupedShape& s) {
  const int in = blas_size(s.in), out = blas_size(s.out);
  return plan_groups(s, false, false, [&](std::int64_t weight, std::int64_t first, std::int64_t rows) {
    return ColumnMajorProduct{in, blas_size(rows), out, in, out, in, weight, first * s.out, first * s.in};
  });
}

/// dw^T [D, F] = x^T (dy^T)^T, a = x, b = dy, c = dw.
inline GroupedPlan plan_weight_gradient(const GroupedShape& s) {
  const int in = blas_size(s.in), out = blas_size(s.out);
  return plan_groups(s, false, true, [&](std::int64_t weight, std::int64_t first, std::int64_t rows) {
    return ColumnMajorProduct{in, out, blas_size(rows), in, out, in, first * s.in, first * s.out, weight};
  });
}

/// Whether every matrix of the plan starts at a multiple of 16 bytes, columns included, if the arrays do.
inline bool is_aligned(const GroupedPlan& plan, std::size_t a_bytes, std::size_t c_bytes) {
  for (const ColumnMajorProduct& p : plan.products) {
    const auto multiple = [](std::int64_t n, std::size_t bytes) {
      return static_cast<std::size_t>(n) * bytes % 16 == 0;
    };
    if (!multiple(p.lda, a_bytes) || !multiple(p.ldb, a_bytes) || !multiple(p.ldc, c_bytes) ||
        !multiple(p.a_offset, a_bytes) || !multiple(p.b_offset, a_bytes) || !multiple(p.c_offset, c_bytes)) {
      return false;
    }
  }
  return true;
}

}  // namespace athanor::kernels::cuda
