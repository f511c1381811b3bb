#include "moe/detail/rows.hpp"

#include <cstring>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "kernels/tensor_kernels.hpp"
#include "parallel/collectives/backend.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::moe::detail {
namespace {

/// Rows of a plan as a tensor beside `other`; on the CPU a view of them.
at::Tensor rows_beside(const at::Tensor& other, std::span<const std::int64_t> rows) {
  // from_blob takes no const pointer, and nobody writes to it.
  return at::from_blob(const_cast<std::int64_t*>(rows.data()), {static_cast<std::int64_t>(rows.size())},
                       at::kLong)
      .to(other.device());
}

/// copy_rows() where a loop of the host cannot reach the rows.
void copy_rows_on_device(at::Tensor to, std::span<const std::int64_t> to_row, const at::Tensor& from,
                         std::span<const std::int64_t> from_row) {
  const at::Tensor source = from_row.empty() ? from : from.index_select(0, rows_beside(from, from_row));
  if (to_row.empty()) {
    to.narrow(0, 0, source.size(0)).copy_(source);
  } else {
    to.index_copy_(0, rows_beside(to, to_row), source.narrow(0, 0, static_cast<std::int64_t>(to_row.size())));
  }
}

void copy_rows_on_host(const at::Tensor& to, std::span<const std::int64_t> to_row, const at::Tensor& from,
                       std::span<const std::int64_t> from_row) {
  const std::size_t rows = to_row.empty() ? from_row.size() : to_row.size();
  const std::size_t bytes = static_cast<std::size_t>(to.size(1)) * to.element_size();
  auto* target = static_cast<char*>(to.mutable_data_ptr());
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  for (std::size_t i = 0; i < rows; ++i) {
    const std::size_t target_row = to_row.empty() ? i : static_cast<std::size_t>(to_row[i]);
    const std::size_t source_row = from_row.empty() ? i : static_cast<std::size_t>(from_row[i]);
    std::memcpy(target + target_row * bytes, source + source_row * bytes, bytes);
  }
}

}  // namespace

void copy_rows(const at::Tensor& to, std::span<const std::int64_t> to_row, const at::Tensor& from,
               std::span<const std::int64_t> from_row) {
  ATHANOR_CHECK(to.scalar_type() == from.scalar_type() && to.size(1) == from.size(1),
                "rows of {} {} are copied to rows of {} {}", from.size(1), c10::toString(from.scalar_type()),
                to.size(1), c10::toString(to.scalar_type()));
  if (to_row.empty() && from_row.empty()) {
    return;
  }
  if (to.is_cpu()) {
    copy_rows_on_host(to, to_row, from, from_row);
  } else {
    copy_rows_on_device(to, to_row, from, from_row);
  }
}

void combine_rows(const at::Tensor& rows, std::span<const std::int64_t> slot, const at::Tensor& gates_TK,
                  std::int64_t choices, const at::Tensor& y_TD) {
  kernels::kernels_of(rows).combine_rows(rows, rows_beside(rows, slot).view({y_TD.size(0), choices}),
                                         gates_TK, y_TD);
}

void combine_rows_backward(const at::Tensor& dy_TD, const at::Tensor& rows,
                           std::span<const std::int64_t> slot, const at::Tensor& gates_TK,
                           std::int64_t choices, const at::Tensor& drows, const at::Tensor& dgates_TK) {
  kernels::kernels_of(dy_TD).combine_rows_backward(
      dy_TD, rows, rows_beside(dy_TD, slot).view({dy_TD.size(0), choices}), gates_TK, drows, dgates_TK);
}

void exchange_rows(const at::Tensor& output, std::span<const std::int64_t> receive_rows,
                   const at::Tensor& input, std::span<const std::int64_t> send_rows,
                   const parallel::Communicator& ep, parallel::Traffic purpose) {
  if (ep.size() == 1) {
    return;
  }
  parallel::all_to_all_v_into(output, input, send_rows, receive_rows, ep, purpose);
}

}  // namespace athanor::moe::detail
