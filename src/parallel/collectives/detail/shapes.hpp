// Shape arithmetic shared by the collectives.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "parallel/collectives/backend.hpp"
#include "parallel/communicator.hpp"

namespace athanor::parallel::detail {

/// Bytes of one row (index of dim 0).
std::int64_t row_bytes(const at::Tensor& tensor);
/// Elements of one row.
std::int64_t row_elements(const at::Tensor& tensor);
/// Bytes of all elements.
std::int64_t total_bytes(const at::Tensor& tensor);
/// The shape of `tensor` with `rows` rows in dim 0.
std::vector<std::int64_t> with_rows(const at::Tensor& tensor, std::int64_t rows);
/// Elements [first, first + count) of a contiguous tensor, wherever it lies.
Bytes bytes_of(const at::Tensor& tensor, std::int64_t first, std::int64_t count);
MutableBytes mutable_bytes_of(const at::Tensor& tensor, std::int64_t first, std::int64_t count);
/// Rows that come before those of `rank`.
std::int64_t sum_before(std::span<const std::int64_t> rows, int rank);
/// Sum of non-negative counts; throws InternalError naming the group when one is negative.
std::int64_t sum_of_counts(std::span<const std::int64_t> counts, const Communicator& comm);

}  // namespace athanor::parallel::detail
