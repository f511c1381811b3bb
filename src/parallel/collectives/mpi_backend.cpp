#include "parallel/collectives/mpi_backend.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/collectives/algorithms/algorithms.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {
namespace {

constexpr std::int64_t max_call_bytes = std::int64_t{1} << 30;

void check_buffer(const at::Tensor& tensor, const char* what) {
  ATHANOR_CHECK(tensor.defined() && tensor.device().is_cpu() && tensor.is_contiguous(),
                "the {} of a collective must be a contiguous CPU tensor", what);
}

std::int64_t row_bytes(const at::Tensor& tensor) {
  std::int64_t bytes = static_cast<std::int64_t>(tensor.element_size());
  for (std::int64_t dim = 1; dim < tensor.dim(); ++dim) {
    bytes *= tensor.size(dim);
  }
  return bytes;
}

// MPI libraries may refuse a null buffer even where no element is read from it.
void* buffer_of(const at::Tensor& tensor) {
  static char nothing = 0;
  void* data = tensor.numel() == 0 ? nullptr : tensor.data_ptr();
  return data == nullptr ? &nothing : data;
}

MPI_Datatype integer_type(at::ScalarType type) {
  switch (type) {
    case at::kInt:
      return MPI_INT32_T;
    case at::kLong:
      return MPI_INT64_T;
    case at::kByte:
      return MPI_UINT8_T;
    case at::kBool:
      return MPI_C_BOOL;
    default:
      throw base::InternalError(
          "all_reduce_integers got {} (int32, int64, uint8 and bool are supported) "
          "convert the tensor",
          c10::toString(type));
  }
}

MPI_Op mpi_op(ReduceOp op, at::ScalarType type) {
  const bool is_bool = type == at::kBool;
  switch (op) {
    case ReduceOp::sum:
      return is_bool ? MPI_LOR : MPI_SUM;
    case ReduceOp::max:
      return is_bool ? MPI_LOR : MPI_MAX;
    case ReduceOp::min:
      return is_bool ? MPI_LAND : MPI_MIN;
  }
  return MPI_OP_NULL;
}

}  // namespace

void MpiBackend::exchange(std::span<const MutableBytes> receive, std::span<const Bytes> send,
                          at::Device device) {
  ATHANOR_CHECK(device.is_cpu(), "an exchange over MPI on group {} got parts on {}", state_.name,
                device.str());
  ATHANOR_CHECK(receive.size() == static_cast<std::size_t>(state_.size) && send.size() == receive.size(),
                "an exchange needs one part for each of the {} ranks of group {}", state_.size, state_.name);
  const Algorithm algorithm =
      state_.algorithms->choose(Operation::exchange, state_.size, detail::bytes_of_others(send, state_.rank));
  detail::exchange(algorithm, state_, receive, send);
}

void MpiBackend::all_gather_v(at::Tensor& output, const at::Tensor& input,
                              std::span<const std::int64_t> rows) {
  check_buffer(output, "output");
  check_buffer(input, "input");
  const std::int64_t bytes = row_bytes(input);
  if (bytes == 0) {
    return;
  }
  auto* first = static_cast<std::byte*>(buffer_of(output));
  std::vector<MutableBytes> parts;
  for (const std::int64_t count : rows) {
    const auto part_bytes = static_cast<std::size_t>(count * bytes);
    parts.emplace_back(first, part_bytes);
    first += part_bytes;
  }
  const MutableBytes own = parts[static_cast<std::size_t>(state_.rank)];
  if (!own.empty() && own.data() != buffer_of(input)) {
    std::memcpy(own.data(), buffer_of(input), own.size());
  }
  const std::int64_t total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0}) * bytes;
  detail::all_gather(state_.algorithms->choose(Operation::all_gather, state_.size, total), state_, parts);
}

void MpiBackend::all_reduce_integers(at::Tensor& tensor, ReduceOp op) {
  check_buffer(tensor, "tensor");
  const MPI_Datatype type = integer_type(tensor.scalar_type());
  const auto item_bytes = static_cast<std::int64_t>(tensor.element_size());
  const std::int64_t chunk = max_call_bytes / item_bytes;
  auto* data = static_cast<char*>(buffer_of(tensor));
  for (std::int64_t first = 0; first < tensor.numel(); first += chunk) {
    const int count = base::checked_cast<int>(std::min(chunk, tensor.numel() - first), "an all-reduce count");
    ATHANOR_MPI_CALL(state_, MPI_Allreduce(MPI_IN_PLACE, data + first * item_bytes, count, type,
                                           mpi_op(op, tensor.scalar_type()), state_.comm));
  }
}

void MpiBackend::broadcast(at::Tensor& tensor, int root) {
  check_buffer(tensor, "tensor");
  const std::int64_t total = tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
  const MutableBytes bytes(static_cast<std::byte*>(buffer_of(tensor)), static_cast<std::size_t>(total));
  detail::broadcast(state_.algorithms->choose(Operation::broadcast, state_.size, total), state_, bytes, root);
}

void MpiBackend::barrier() {
  detail::barrier(state_.algorithms->choose(Operation::barrier, state_.size, 0), state_);
}

}  // namespace athanor::parallel
