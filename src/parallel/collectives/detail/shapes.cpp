#include "parallel/collectives/detail/shapes.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::parallel::detail {

std::int64_t row_bytes(const at::Tensor& tensor) {
  std::int64_t bytes = static_cast<std::int64_t>(tensor.element_size());
  for (std::int64_t dim = 1; dim < tensor.dim(); ++dim) {
    bytes *= tensor.size(dim);
  }
  return bytes;
}

std::int64_t total_bytes(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
}

std::vector<std::int64_t> with_rows(const at::Tensor& tensor, std::int64_t rows) {
  std::vector<std::int64_t> shape = tensor.sizes().vec();
  shape[0] = rows;
  return shape;
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
