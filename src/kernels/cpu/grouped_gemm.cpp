// The only kernel source that uses ATen: its GEMM is the back-end.
#include "kernels/grouped_gemm.hpp"

#include <ATen/ATen.h>

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

}  // namespace

void grouped_linear(const at::Tensor& x_RD, const at::Tensor& w_eFD, std::span<const std::int64_t> rows,
                    const at::Tensor& y_RF) {
  const at::NoGradGuard no_grad;
  check_rows(x_RD, w_eFD, rows);
  for_each_group(rows, [&](std::int64_t group, std::int64_t first, std::int64_t count) {
    at::Tensor y = y_RF.narrow(0, first, count);
    at::mm_out(y, x_RD.narrow(0, first, count), w_eFD.select(0, group).t());
  });
}

void grouped_linear_data_gradient(const at::Tensor& dy_RF, const at::Tensor& w_eFD,
                                  std::span<const std::int64_t> rows, const at::Tensor& dx_RD) {
  const at::NoGradGuard no_grad;
  check_rows(dy_RF, w_eFD, rows);
  for_each_group(rows, [&](std::int64_t group, std::int64_t first, std::int64_t count) {
    at::Tensor dx = dx_RD.narrow(0, first, count);
    at::mm_out(dx, dy_RF.narrow(0, first, count), w_eFD.select(0, group));
  });
}

void grouped_linear_weight_gradient(const at::Tensor& dy_RF, const at::Tensor& x_RD,
                                    std::span<const std::int64_t> rows, WeightGradient mode,
                                    const at::Tensor& dw_eFD) {
  const at::NoGradGuard no_grad;
  check_rows(dy_RF, dw_eFD, rows);
  const bool same_type = dw_eFD.scalar_type() == x_RD.scalar_type();
  for_each_group(rows, [&](std::int64_t group, std::int64_t first, std::int64_t count) {
    at::Tensor dw = dw_eFD.select(0, group);
    const at::Tensor dy_t = dy_RF.narrow(0, first, count).t();
    const at::Tensor x = x_RD.narrow(0, first, count);
    if (!same_type) {
      const at::Tensor product = at::mm(dy_t, x);
      mode == WeightGradient::accumulate ? dw.add_(product) : dw.copy_(product);
    } else if (mode == WeightGradient::accumulate) {
      dw.addmm_(dy_t, x);
    } else {
      at::mm_out(dw, dy_t, x);
    }
  });
  for (std::size_t g = 0; mode == WeightGradient::overwrite && g < rows.size(); ++g) {
    if (rows[g] == 0) {
      dw_eFD.select(0, static_cast<std::int64_t>(g)).zero_();
    }
  }
}

}  // namespace athanor::kernels
