// Sums over ranks. Floats: every rank gets the contributions to its block, adds them in rank order, and the
// blocks are gathered; short tensors are gathered whole and added everywhere, which takes one exchange
// instead of two and gives the same bits, because each element is still added in the same order in the same
// type.
#include <algorithm>
#include <string_view>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/collective_scope.hpp"
#include "parallel/collectives/detail/shapes.hpp"
#include "parallel/collectives/rank_order.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::parallel {
namespace {

// Elements of one rank's block that are exchanged and reduced at a time: what n ranks contribute stays near
// the caches, and the buffer for it small. The bits do not depend on it.
std::int64_t piece_elements(const Communicator& comm) {
  return std::max<std::int64_t>(std::int64_t{1} << 14, (std::int64_t{1} << 20) / comm.size());
}

// Bytes this rank sends in an all-reduce: the other ranks' blocks, then its own to each of them. All paths
// count alike, also those that send otherwise: bytes must not depend on which of them is the faster one.
std::int64_t all_reduce_bytes(const at::Tensor& tensor, const Communicator& comm) {
  const std::int64_t others = comm.size() - 1;
  const std::int64_t chunk = piece_elements(comm) * comm.size();
  const std::int64_t rest = tensor.numel() % chunk;
  const std::int64_t own_rest = block_of(rest, comm.size(), comm.rank()).count;
  const std::int64_t elements =
      tensor.numel() / chunk * 2 * others * piece_elements(comm) + (rest - own_rest) + own_rest * others;
  return elements * static_cast<std::int64_t>(tensor.element_size());
}

// Reduces one block for each rank of the ranks' flat tensors; this rank's result goes to `output`, which may
// be its block of `flat`.
class BlockReducer {
 public:
  BlockReducer(const at::Tensor& flat, std::int64_t max_block, const Communicator& comm)
      : flat_(flat), comm_(comm), received_(at::empty({max_block * (comm.size() - 1)}, flat.options())) {}

  void reduce(at::Tensor& output, std::span<const Block> blocks, ReduceOp op) const {
    const auto own = static_cast<std::size_t>(comm_.rank());
    const std::int64_t count = blocks[own].count;
    std::vector<Bytes> send(blocks.size());
    std::vector<MutableBytes> receive(blocks.size());
    std::vector<at::Tensor> parts(blocks.size());
    std::int64_t slot = 0;
    for (std::size_t r = 0; r < blocks.size(); ++r) {
      if (r == own) {
        parts[r] = flat_.narrow(0, blocks[r].first, count);
        continue;
      }
      send[r] = detail::bytes_of(flat_, blocks[r].first, blocks[r].count);
      receive[r] = detail::mutable_bytes_of(received_, slot, count);
      parts[r] = received_.narrow(0, slot, count);
      slot += count;
    }
    comm_.backend().exchange(receive, send, flat_.device());
    reduce_in_rank_order(output, parts, op);
  }

 private:
  const at::Tensor& flat_;
  const Communicator& comm_;
  at::Tensor received_;
};

void all_reduce_short(at::Tensor& flat, ReduceOp op, const Communicator& comm) {
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), flat.numel());
  at::Tensor gathered = at::empty({flat.numel() * comm.size()}, flat.options());
  comm.backend().all_gather_v(gathered, flat, rows);
  reduce_in_rank_order(flat, gathered.split(std::max<std::int64_t>(flat.numel(), 1)), op);
}

void all_reduce_long(at::Tensor& flat, ReduceOp op, const Communicator& comm) {
  const std::int64_t piece = piece_elements(comm);
  const BlockReducer reducer(flat, std::min(piece, flat.numel()), comm);
  std::vector<Block> blocks(static_cast<std::size_t>(comm.size()));
  std::vector<std::int64_t> rows(blocks.size());
  for (std::int64_t first = 0; first < flat.numel(); first += piece * comm.size()) {
    const std::int64_t count = std::min(piece * comm.size(), flat.numel() - first);
    for (int r = 0; r < comm.size(); ++r) {
      const Block block = block_of(count, comm.size(), r);
      blocks[static_cast<std::size_t>(r)] = {first + block.first, block.count};
      rows[static_cast<std::size_t>(r)] = block.count;
    }
    const Block& own = blocks[static_cast<std::size_t>(comm.rank())];
    at::Tensor own_block = flat.narrow(0, own.first, own.count);
    reducer.reduce(own_block, blocks, op);
    at::Tensor chunk = flat.narrow(0, first, count);
    comm.backend().all_gather_v(chunk, own_block, rows);
  }
}

void all_reduce_floats(at::Tensor& flat, ReduceOp op, const Communicator& comm) {
  if (flat.numel() == 0) {
    return;
  }
  if (op == ReduceOp::sum && comm.backend().sums_floats(flat)) {
    comm.backend().all_reduce_floats(flat);
    return;
  }
  if (chosen_algorithm(comm, Operation::all_reduce, detail::total_bytes(flat)) == Algorithm::gather) {
    all_reduce_short(flat, op, comm);
  } else {
    all_reduce_long(flat, op, comm);
  }
}

std::string_view name_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::max:
      return "max";
    case ReduceOp::min:
      return "min";
  }
  return "";
}

bool is_mpi_integer(at::ScalarType type) {
  return type == at::kInt || type == at::kLong || type == at::kByte || type == at::kBool;
}

}  // namespace

at::Tensor reduce_scatter_sum(const at::Tensor& input, const Communicator& comm, Traffic purpose,
                              CallSite site) {
  ATHANOR_CHECK(
      input.dim() >= 1 && input.is_floating_point() && input.size(0) % comm.size() == 0,
      "reduce_scatter_sum on group {} of {} ranks needs floats and a number of rows that they divide",
      comm.name(), comm.size());
  if (comm.size() == 1) {
    return input;
  }
  at::Tensor output = at::empty(detail::with_rows(input, input.size(0) / comm.size()), input.options());
  reduce_scatter_sum_into(output, input, comm, purpose, site);
  return output;
}

void reduce_scatter_sum_into(at::Tensor& output, const at::Tensor& input, const Communicator& comm,
                             Traffic purpose, CallSite site) {
  ATHANOR_CHECK(input.dim() >= 1 && input.is_floating_point() && output.is_contiguous() &&
                    input.size(0) % comm.size() == 0 && output.numel() * comm.size() == input.numel(),
                "reduce_scatter_sum_into on group {} of {} ranks: {} elements do not scatter into {}",
                comm.name(), comm.size(), input.numel(), output.numel());
  if (comm.size() == 1) {
    output.copy_(input.view(output.sizes()));
    return;
  }
  const at::Tensor flat = input.contiguous().detach().view({-1});
  const at::Tensor flat_output = output.detach().view({-1});
  const std::int64_t own_elements = flat_output.numel();
  const detail::CollectiveScope scope(comm,
                                      {.operation = "reduce_scatter_sum",
                                       .purpose = purpose,
                                       .bytes = detail::total_bytes(flat) / comm.size() * (comm.size() - 1),
                                       .site = site,
                                       .dtype = c10::toString(flat.scalar_type()),
                                       .elements = flat.numel()});
  if (flat_output.scalar_type() == flat.scalar_type() && comm.backend().sums_floats(flat)) {
    at::Tensor result = flat_output;
    comm.backend().reduce_scatter_floats(result, flat);
    return;
  }
  const std::int64_t piece = std::min(piece_elements(comm), own_elements);
  const BlockReducer reducer(flat, piece, comm);
  std::vector<Block> blocks(static_cast<std::size_t>(comm.size()));
  for (std::int64_t first = 0; first < own_elements; first += piece) {
    const std::int64_t count = std::min(piece, own_elements - first);
    for (int r = 0; r < comm.size(); ++r) {
      blocks[static_cast<std::size_t>(r)] = {r * own_elements + first, count};
    }
    at::Tensor part = flat_output.narrow(0, first, count);
    reducer.reduce(part, blocks, ReduceOp::sum);
  }
}

void all_reduce_(at::Tensor& tensor, ReduceOp op, const Communicator& comm, Traffic purpose, CallSite site) {
  const at::ScalarType type = tensor.scalar_type();
  ATHANOR_CHECK(at::isFloatingType(type) || is_mpi_integer(type), "all_reduce_ on group {} cannot reduce {}",
                comm.name(), c10::toString(type));
  if (comm.size() == 1) {
    return;
  }
  const at::Tensor contiguous = tensor.contiguous();
  at::Tensor flat = contiguous.detach().view({-1});
  const detail::CollectiveScope scope(comm, {.operation = "all_reduce",
                                             .purpose = purpose,
                                             .bytes = all_reduce_bytes(flat, comm),
                                             .site = site,
                                             .dtype = c10::toString(type),
                                             .elements = flat.numel(),
                                             .reduction = name_of(op)});
  if (is_mpi_integer(type)) {
    comm.backend().all_reduce_integers(flat, op);
  } else {
    all_reduce_floats(flat, op, comm);
  }
  if (!tensor.is_contiguous()) {
    tensor.copy_(contiguous);
  }
}

double all_reduce_sum(double value, const Communicator& comm, CallSite site) {
  at::Tensor tensor = at::full({1}, value, at::kDouble);
  all_reduce_(tensor, ReduceOp::sum, comm, Traffic::other, site);
  return tensor.item<double>();
}

std::int64_t all_reduce_sum(std::int64_t value, const Communicator& comm, CallSite site) {
  at::Tensor tensor = at::full({1}, value, at::kLong);
  all_reduce_(tensor, ReduceOp::sum, comm, Traffic::other, site);
  return tensor.item<std::int64_t>();
}

std::int64_t all_reduce_max(std::int64_t value, const Communicator& comm, CallSite site) {
  at::Tensor tensor = at::full({1}, value, at::kLong);
  all_reduce_(tensor, ReduceOp::max, comm, Traffic::other, site);
  return tensor.item<std::int64_t>();
}

bool agree(bool ok, const Communicator& comm, CallSite site) {
  at::Tensor tensor = at::full({1}, ok ? 1 : 0, at::kByte);
  all_reduce_(tensor, ReduceOp::min, comm, Traffic::other, site);
  return tensor.item<std::uint8_t>() != 0;
}

}  // namespace athanor::parallel
