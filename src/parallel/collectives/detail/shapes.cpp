#include "parallel/collectives/detail/shapes.hpp"

#include <numeric>

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::parallel::detail {

std::int64_t row_elements(const at::Tensor& tensor) {
  std::int64_t elements = 1;
  for (std::int64_t dim = 1; dim < tensor.dim(); ++dim) {
    elements *= tensor.size(dim);
  }
  return elements;
}

std::int64_t row_bytes(const at::Tensor& tensor) {
  return row_elements(tensor) * static_cast<std::int64_t>(tensor.element_size());
}

std::int64_t total_bytes(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
}

std::vector<std::int64_t> with_rows(const at::Tensor& tensor, std::int64_t rows) {
  std::vector<std::int64_t> shape = tensor.sizes().vec();
  shape[0] = rows;
  return shape;
}

Bytes bytes_of(const at::Tensor& tensor, std::int64_t first, std::int64_t count) {
  const MutableBytes bytes = mutable_bytes_of(tensor, first, count);
  return {bytes.data(), bytes.size()};
}

MutableBytes mutable_bytes_of(const at::Tensor& tensor, std::int64_t first, std::int64_t count) {
  if (count == 0) {
    return {};
  }
  ATHANOR_CHECK(tensor.is_contiguous() && first >= 0 && first + count <= tensor.numel(),
                "elements [{}, {}) of a tensor of {}", first, first + count, tensor.numel());
  const auto item_bytes = static_cast<std::int64_t>(tensor.element_size());
  return {static_cast<std::byte*>(tensor.data_ptr()) + first * item_bytes,
          static_cast<std::size_t>(count * item_bytes)};
}

std::int64_t sum_before(std::span<const std::int64_t> rows, int rank) {
  const auto before = rows.first(static_cast<std::size_t>(rank));
  return std::accumulate(before.begin(), before.end(), std::int64_t{0});
}

std::int64_t sum_of_counts(std::span<const std::int64_t> counts, const Communicator& comm) {
  std::int64_t sum = 0;
  for (const std::int64_t count : counts) {
    ATHANOR_CHECK(count >= 0, "a collective on group {} got a count of {} rows", comm.name(), count);
    sum += count;
  }
  return sum;
}

}  // namespace athanor::parallel::detail
