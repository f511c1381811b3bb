// Sums over ranks. Floats: every rank gets the contributions to its block, adds them in rank order, and the
// blocks are gathered; short tensors are gathered whole and added everywhere, which takes one exchange
// instead of two and gives the same bits, because each element is still added in the same order in the same
// type.
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/shapes.hpp"
#include "parallel/collectives/rank_order.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::parallel {
namespace {

// Elements up to which all_reduce_ gathers everything.
constexpr std::int64_t gather_limit = 4096;

std::vector<std::int64_t> block_sizes(std::int64_t total, const Communicator& comm) {
  std::vector<std::int64_t> sizes;
  for (int r = 0; r < comm.size(); ++r) {
    sizes.push_back(block_of(total, comm.size(), r).count);
  }
  return sizes;
}

// Bytes this rank sends in an all-reduce: the other ranks' blocks, then its own to each of them. Short
// tensors count alike although they travel whole: bytes must not depend on which path is the faster one.
std::int64_t all_reduce_bytes(const at::Tensor& tensor, const Communicator& comm) {
  const std::int64_t own = block_of(tensor.numel(), comm.size(), comm.rank()).count;
  return (tensor.numel() - own + own * (comm.size() - 1)) * static_cast<std::int64_t>(tensor.element_size());
}

// Every rank's contribution (equal sizes) of the rows of `received`, in rank order.
std::vector<at::Tensor> parts_of(const at::Tensor& received, const Communicator& comm) {
  const std::int64_t rows = received.size(0) / comm.size();
  std::vector<at::Tensor> parts;
  for (int r = 0; r < comm.size(); ++r) {
    parts.push_back(received.narrow(0, r * rows, rows));
  }
  return parts;
}

// Reduces block `rows[rank]` of the ranks' inputs into `output`.
void reduce_own_block(at::Tensor& output, const at::Tensor& input, std::span<const std::int64_t> rows,
                      ReduceOp op, const Communicator& comm) {
  const std::int64_t own = rows[static_cast<std::size_t>(comm.rank())];
  const std::vector<std::int64_t> receive_rows(rows.size(), own);
  at::Tensor received = at::empty(detail::with_rows(input, own * comm.size()), input.options());
  comm.backend().all_to_all_v(received, input, receive_rows, rows);
  reduce_in_rank_order(output, parts_of(received, comm), op);
}

void all_reduce_floats(at::Tensor& flat, ReduceOp op, const Communicator& comm) {
  if (flat.numel() <= gather_limit) {
    const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), flat.numel());
    at::Tensor gathered = at::empty({flat.numel() * comm.size()}, flat.options());
    comm.backend().all_gather_v(gathered, flat, rows);
    reduce_in_rank_order(flat, parts_of(gathered, comm), op);
    return;
  }
  const std::vector<std::int64_t> rows = block_sizes(flat.numel(), comm);
  const Block own = block_of(flat.numel(), comm.size(), comm.rank());
  at::Tensor own_block = flat.narrow(0, own.first, own.count);
  at::Tensor reduced = at::empty_like(own_block);
  reduce_own_block(reduced, flat, rows, op, comm);
  comm.backend().all_gather_v(flat, reduced, rows);
}

bool is_mpi_integer(at::ScalarType type) {
  return type == at::kInt || type == at::kLong || type == at::kByte || type == at::kBool;
}

}  // namespace

at::Tensor reduce_scatter_sum(const at::Tensor& input, const Communicator& comm, Traffic purpose) {
  ATHANOR_CHECK(input.dim() >= 1 && input.size(0) % comm.size() == 0,
                "reduce_scatter_sum on group {} of {} ranks needs a number of rows that they divide",
                comm.name(), comm.size());
  if (comm.size() == 1) {
    return input;
  }
  at::Tensor output = at::empty(detail::with_rows(input, input.size(0) / comm.size()), input.options());
  reduce_scatter_sum_into(output, input, comm, purpose);
  return output;
}

void reduce_scatter_sum_into(at::Tensor& output, const at::Tensor& input, const Communicator& comm,
                             Traffic purpose) {
  ATHANOR_CHECK(input.dim() >= 1 && input.is_floating_point() && output.is_contiguous() &&
                    input.size(0) % comm.size() == 0 && output.numel() * comm.size() == input.numel(),
                "reduce_scatter_sum_into on group {} of {} ranks: {} elements do not scatter into {}",
                comm.name(), comm.size(), input.numel(), output.numel());
  if (comm.size() == 1) {
    output.copy_(input.view(output.sizes()));
    return;
  }
  const at::Tensor source = input.contiguous();
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), source.size(0) / comm.size());
  comm.traffic().add(purpose, detail::total_bytes(source) / comm.size() * (comm.size() - 1));
  reduce_own_block(output, source, rows, ReduceOp::sum, comm);
}

void all_reduce_(at::Tensor& tensor, ReduceOp op, const Communicator& comm, Traffic purpose) {
  const at::ScalarType type = tensor.scalar_type();
  ATHANOR_CHECK(at::isFloatingType(type) || is_mpi_integer(type), "all_reduce_ on group {} cannot reduce {}",
                comm.name(), c10::toString(type));
  if (comm.size() == 1) {
    return;
  }
  const at::Tensor contiguous = tensor.contiguous();
  at::Tensor flat = contiguous.detach().view({-1});
  comm.traffic().add(purpose, all_reduce_bytes(flat, comm));
  if (is_mpi_integer(type)) {
    comm.backend().all_reduce_integers(flat, op);
  } else {
    all_reduce_floats(flat, op, comm);
  }
  if (!tensor.is_contiguous()) {
    tensor.copy_(contiguous);
  }
}

double all_reduce_sum(double value, const Communicator& comm) {
  at::Tensor tensor = at::full({1}, value, at::kDouble);
  all_reduce_(tensor, ReduceOp::sum, comm, Traffic::other);
  return tensor.item<double>();
}

std::int64_t all_reduce_sum(std::int64_t value, const Communicator& comm) {
  at::Tensor tensor = at::full({1}, value, at::kLong);
  all_reduce_(tensor, ReduceOp::sum, comm, Traffic::other);
  return tensor.item<std::int64_t>();
}

std::int64_t all_reduce_max(std::int64_t value, const Communicator& comm) {
  at::Tensor tensor = at::full({1}, value, at::kLong);
  all_reduce_(tensor, ReduceOp::max, comm, Traffic::other);
  return tensor.item<std::int64_t>();
}

bool agree(bool ok, const Communicator& comm) {
  at::Tensor tensor = at::full({1}, ok ? 1 : 0, at::kByte);
  all_reduce_(tensor, ReduceOp::min, comm, Traffic::other);
  return tensor.item<std::uint8_t>() != 0;
}

}  // namespace athanor::parallel
