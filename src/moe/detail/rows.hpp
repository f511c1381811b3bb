// Row kernels on tensors of any float type, and the exchange of rows between ranks.
//
// Legend: x, y, rows: contiguous [n, D].
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

#include "parallel/communicator.hpp"

namespace athanor::moe::detail {

/// to[to_row[i]] = from[from_row[i]] for all i; an empty span stands for 0, 1, 2, ...
void copy_rows(const at::Tensor& to, std::span<const std::int64_t> to_row, const at::Tensor& from,
               std::span<const std::int64_t> from_row);

/// y[t] = sum_k gates[t, k] rows[slot[t K + k]] (kernels/permute.hpp); undefined gates: all 1.
void combine_rows(const at::Tensor& rows, std::span<const std::int64_t> slot, const at::Tensor& gates_TK,
                  std::int64_t choices, const at::Tensor& y_TD);

/// drows[slot] = gate * dy and dgates = <dy, rows[slot]>; undefined gates: all 1 and no dgates.
void combine_rows_backward(const at::Tensor& dy_TD, const at::Tensor& rows,
                           std::span<const std::int64_t> slot, const at::Tensor& gates_TK,
                           std::int64_t choices, const at::Tensor& drows, const at::Tensor& dgates_TK);

/// Sends `input` by send_rows and fills `output` by receive_rows, in rank order; nothing is sent to oneself.
/// The one place where dispatched rows meet the wire. Collective over `ep`.
void exchange_rows(const at::Tensor& output, std::span<const std::int64_t> receive_rows,
                   const at::Tensor& input, std::span<const std::int64_t> send_rows,
                   const parallel::Communicator& ep, parallel::Traffic purpose);

}  // namespace athanor::moe::detail
