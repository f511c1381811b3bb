// The only kernel source that uses ATen: its GEMM is the back-end.
#include "kernels/grouped_gemm.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/error.hpp"

namespace athanor::kernels {

namespace {

void check_rows(const at::Tensor& x, const at::Tensor& groups, std::span<const std::int64_t> rows) {
  std::int64_t sum = 0;
  for (const std::int64_t count : rows) {
    sum += count;
  }
  ATHANOR_CHECK(static_cast<std::int64_t>(rows.size()) == groups.size(0) && sum == x.size(0),
                "grouped product of {} rows with {} matrices was given {} counts that sum to {}", x.size(0),
                groups.size(0), rows.size(), sum);
}

/// Calls use(group, first row, count) for every group that has rows.
template <typename Use>
void for_each_group(std::span<const std::int64_t> rows, const Use& use) {
  std::int64_t first = 0;
  for (std::size_t g = 0; g < rows.size(); ++g) {
    if (rows[g] > 0) {
      use(static_cast<std::int64_t>(g), first, rows[g]);
    }
    first += rows[g];
  }
}

/// Fewer rows than these do not pay for packing the right operand.
constexpr std::int64_t fewest_rows = 8;

/// Whether our kernel makes products of this matrix: on the CPU, on one thread, where it is the fastest.
bool is_ours(const at::Tensor& matrix) {
  if (!matrix.is_cpu() || at::get_num_threads() != 1) {
    return false;
  }
  const at::ScalarType type = matrix.scalar_type();
  return (type == at::kFloat && cpu::gemm_is_fastest<float>()) ||
         (type == at::kBFloat16 && cpu::gemm_is_fastest<c10::BFloat16>());
}

bool is_dense_in_one_dimension(const at::Tensor& matrix) {
  return matrix.stride(0) == 1 || matrix.stride(1) == 1 || matrix.size(0) == 1 || matrix.size(1) == 1;
}

template <typename T>
Operand<T> operand_of(const at::Tensor& matrix) {
  const T* data = matrix.const_data_ptr<T>();
  if (matrix.stride(1) == 1 || matrix.size(1) == 1) {
    return {data, matrix.stride(0), 1};
  }
  return {data, 1, matrix.stride(1)};
}

template <typename T, typename C>
void run_ours(const at::Tensor& a, const at::Tensor& b, GemmMode mode, const at::Tensor& out) {
  cpu::gemm(operand_of<T>(a), operand_of<T>(b), {a.size(0), b.size(1), a.size(1)}, mode,
            out.mutable_data_ptr<C>(), out.stride(0));
}

void multiply_ours(const at::Tensor& a, const at::Tensor& b, GemmMode mode, const at::Tensor& out) {
  if (a.scalar_type() == at::kFloat) {
    run_ours<float, float>(a, b, mode, out);
  } else if (out.scalar_type() == at::kFloat) {
    run_ours<c10::BFloat16, float>(a, b, mode, out);
  } else {
    run_ours<c10::BFloat16, c10::BFloat16>(a, b, mode, out);
  }
}

void multiply_by_library(const at::Tensor& a, const at::Tensor& b, GemmMode mode, at::Tensor out) {
  if (out.scalar_type() != a.scalar_type()) {
    const at::Tensor product = a.is_cuda() ? at::mm(a, b, out.scalar_type()) : at::mm(a, b);
    mode == GemmMode::add ? out.add_(product) : out.copy_(product);
  } else if (mode == GemmMode::add) {
    out.addmm_(a, b);
  } else {
    at::mm_out(out, a, b);
  }
}

}  // namespace

void matmul_into(const at::Tensor& a, const at::Tensor& b, GemmMode mode, const at::Tensor& out) {
  const at::NoGradGuard no_grad;
  ATHANOR_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0) &&
                    a.scalar_type() == b.scalar_type() && out.dim() == 2 && out.size(0) == a.size(0) &&
                    out.size(1) == b.size(1),
                "operands of a product do not fit together");
  if (!is_ours(a) || a.size(0) < fewest_rows || out.stride(1) != 1 ||
      (mode == GemmMode::add && out.scalar_type() != at::kFloat)) {
    return multiply_by_library(a, b, mode, out);
  }
  multiply_ours(is_dense_in_one_dimension(a) ? a : a.contiguous(),
                is_dense_in_one_dimension(b) ? b : b.contiguous(), mode, out);
}

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options().requires_grad(false));
  matmul_into(a, b, GemmMode::overwrite, out);
  return out;
}

void grouped_linear(const at::Tensor& x_RD, const at::Tensor& w_eFD, std::span<const std::int64_t> rows,
                    const at::Tensor& y_RF) {
  const at::NoGradGuard no_grad;
  check_rows(x_RD, w_eFD, rows);
  for_each_group(rows, [&](std::int64_t group, std::int64_t first, std::int64_t count) {
    matmul_into(x_RD.narrow(0, first, count), w_eFD.select(0, group).t(), GemmMode::overwrite,
                y_RF.narrow(0, first, count));
  });
}

void grouped_linear_data_gradient(const at::Tensor& dy_RF, const at::Tensor& w_eFD,
                                  std::span<const std::int64_t> rows, const at::Tensor& dx_RD) {
  const at::NoGradGuard no_grad;
  check_rows(dy_RF, w_eFD, rows);
  for_each_group(rows, [&](std::int64_t group, std::int64_t first, std::int64_t count) {
    matmul_into(dy_RF.narrow(0, first, count), w_eFD.select(0, group), GemmMode::overwrite,
                dx_RD.narrow(0, first, count));
  });
}

void grouped_linear_weight_gradient(const at::Tensor& dy_RF, const at::Tensor& x_RD,
                                    std::span<const std::int64_t> rows, WeightGradient mode,
                                    const at::Tensor& dw_eFD) {
  const at::NoGradGuard no_grad;
  check_rows(dy_RF, dw_eFD, rows);
  const GemmMode gemm_mode = mode == WeightGradient::accumulate ? GemmMode::add : GemmMode::overwrite;
  for_each_group(rows, [&](std::int64_t group, std::int64_t first, std::int64_t count) {
    matmul_into(dy_RF.narrow(0, first, count).t(), x_RD.narrow(0, first, count), gemm_mode,
                dw_eFD.select(0, group));
  });
  for (std::size_t g = 0; mode == WeightGradient::overwrite && g < rows.size(); ++g) {
    if (rows[g] == 0) {
      dw_eFD.select(0, static_cast<std::int64_t>(g)).zero_();
    }
  }
}

}  // namespace athanor::kernels
