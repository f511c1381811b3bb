#include "moe/detail/rows.hpp"

#include <cstring>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "base/error.hpp"
#include "kernels/permute.hpp"
#include "parallel/collectives/backend.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::moe::detail {
namespace {

/// Calls function(T()) for the element type of `tensor`.
template <typename Function>
void for_element_of(const at::Tensor& tensor, const Function& function) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, tensor.scalar_type(), "rows",
                                  [&] { function(scalar_t()); });
}

template <typename A>
const A* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<A>() : nullptr;
}

}  // namespace

void copy_rows(const at::Tensor& to, std::span<const std::int64_t> to_row, const at::Tensor& from,
               std::span<const std::int64_t> from_row) {
  ATHANOR_CHECK(to.scalar_type() == from.scalar_type() && to.size(1) == from.size(1),
                "rows of {} {} are copied to rows of {} {}", from.size(1), c10::toString(from.scalar_type()),
                to.size(1), c10::toString(to.scalar_type()));
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

void combine_rows(const at::Tensor& rows, std::span<const std::int64_t> slot, const at::Tensor& gates_TK,
                  std::int64_t choices, const at::Tensor& y_TD) {
  for_element_of(rows, [&]<typename T>(T) {
    kernels::cpu::combine_rows(rows.const_data_ptr<T>(), slot.data(),
                               data_or_null<kernels::accumulation_t<T>>(gates_TK), y_TD.size(0), choices,
                               y_TD.size(1), y_TD.mutable_data_ptr<T>());
  });
}

void combine_rows_backward(const at::Tensor& dy_TD, const at::Tensor& rows,
                           std::span<const std::int64_t> slot, const at::Tensor& gates_TK,
                           std::int64_t choices, const at::Tensor& drows, const at::Tensor& dgates_TK) {
  for_element_of(dy_TD, [&]<typename T>(T) {
    using A = kernels::accumulation_t<T>;
    kernels::cpu::combine_rows_backward(dy_TD.const_data_ptr<T>(), data_or_null<T>(rows), slot.data(),
                                        data_or_null<A>(gates_TK), dy_TD.size(0), choices, dy_TD.size(1),
                                        drows.mutable_data_ptr<T>(),
                                        dgates_TK.defined() ? dgates_TK.mutable_data_ptr<A>() : nullptr);
  });
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
