#include "parallel/collectives/mpi_backend.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "parallel/collectives/row_units.hpp"
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

// A committed datatype of `bytes` contiguous bytes.
class ContiguousType {
 public:
  ContiguousType(std::int64_t bytes, const detail::CommunicatorState& state) {
    const TypeFactors factors = type_factors(bytes);
    MPI_Datatype inner = MPI_DATATYPE_NULL;
    ATHANOR_MPI_CALL(state, MPI_Type_contiguous(factors.inner, MPI_BYTE, &inner));
    const int code = MPI_Type_contiguous(factors.outer, inner, &type_);
    MPI_Type_free(&inner);  // `type_` keeps what it needs of it
    ATHANOR_MPI_CALL(state, code /* MPI_Type_contiguous */);
    ATHANOR_MPI_CALL(state, MPI_Type_commit(&type_));
  }
  ~ContiguousType() {
    if (type_ != MPI_DATATYPE_NULL) {
      MPI_Type_free(&type_);
    }
  }
  ContiguousType(const ContiguousType&) = delete;
  ContiguousType& operator=(const ContiguousType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// Messages under way, in pieces whose counts fit an int.
class Requests {
 public:
  explicit Requests(const detail::CommunicatorState& state) : state_(state) {}

  void receive(MutableBytes bytes, int source) {
    for (; !bytes.empty(); bytes = bytes.subspan(piece(bytes.size()))) {
      const int count = base::checked_cast<int>(piece(bytes.size()), "a message's bytes");
      ATHANOR_MPI_CALL(state_,
                       MPI_Irecv(bytes.data(), count, MPI_BYTE, source, tag, state_.comm, add(source)));
    }
  }
  void send(Bytes bytes, int target) {
    for (; !bytes.empty(); bytes = bytes.subspan(piece(bytes.size()))) {
      const int count = base::checked_cast<int>(piece(bytes.size()), "a message's bytes");
      ATHANOR_MPI_CALL(state_,
                       MPI_Isend(bytes.data(), count, MPI_BYTE, target, tag, state_.comm, add(target)));
    }
  }
  // One by one: Open MPI 4.1's MPI_Waitall may spin for ever when a message failed before it was called.
  void wait() {
    for (auto& [request, peer] : requests_) {
      const int code = MPI_Wait(&request, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS) {
        detail::check_mpi(code, fmt::format("MPI_Wait (exchange with rank {})", peer), state_.name,
                          state_.rank, state_.size);
      }
    }
  }

 private:
  static constexpr int tag = 1;
  static std::size_t piece(std::size_t bytes) {
    return std::min(bytes, static_cast<std::size_t>(max_call_bytes));
  }
  MPI_Request* add(int peer) { return &requests_.emplace_back(MPI_REQUEST_NULL, peer).first; }

  const detail::CommunicatorState& state_;
  std::vector<std::pair<MPI_Request, int>> requests_;  // and the other rank
};

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

void MpiBackend::exchange(std::span<const MutableBytes> receive, std::span<const Bytes> send) {
  ATHANOR_CHECK(receive.size() == static_cast<std::size_t>(state_.size) && send.size() == receive.size(),
                "an exchange needs one part for each of the {} ranks of group {}", state_.size, state_.name);
  Requests requests(state_);
  // Each rank begins with its right-hand neighbour, so that not all of them send to rank 0 first.
  for (int step = 1; step < state_.size; ++step) {
    const int source = (state_.rank - step + state_.size) % state_.size;
    requests.receive(receive[static_cast<std::size_t>(source)], source);
  }
  for (int step = 1; step < state_.size; ++step) {
    const int target = (state_.rank + step) % state_.size;
    requests.send(send[static_cast<std::size_t>(target)], target);
  }
  requests.wait();
}

void MpiBackend::all_gather_v(at::Tensor& output, const at::Tensor& input,
                              std::span<const std::int64_t> rows) {
  check_buffer(output, "output");
  check_buffer(input, "input");
  const std::int64_t bytes = row_bytes(input);
  if (bytes == 0) {
    return;
  }
  const std::int64_t unit = rows_per_unit(rows);
  const RowUnits units = in_units(rows, unit);
  const ContiguousType type(unit * bytes, state_);
  const auto own = static_cast<std::size_t>(state_.rank);
  const auto* own_part = static_cast<const char*>(buffer_of(output)) + units.offsets[own] * unit * bytes;
  const bool in_place = rows[own] > 0 && own_part == buffer_of(input);
  ATHANOR_MPI_CALL(state_, MPI_Allgatherv(in_place ? MPI_IN_PLACE : buffer_of(input), units.counts[own],
                                          type.get(), buffer_of(output), units.counts.data(),
                                          units.offsets.data(), type.get(), state_.comm));
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
  auto* data = static_cast<char*>(buffer_of(tensor));
  for (std::int64_t first = 0; first < total; first += max_call_bytes) {
    const int count = base::checked_cast<int>(std::min(max_call_bytes, total - first), "a broadcast count");
    ATHANOR_MPI_CALL(state_, MPI_Bcast(data + first, count, MPI_BYTE, root, state_.comm));
  }
}

void MpiBackend::barrier() {
  ATHANOR_MPI_CALL(state_, MPI_Barrier(state_.comm));
}

}  // namespace athanor::parallel
