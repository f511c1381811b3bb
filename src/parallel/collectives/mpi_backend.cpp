#include "parallel/collectives/mpi_backend.hpp"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

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

void MpiBackend::all_to_all_v(at::Tensor& output, const at::Tensor& input,
                              std::span<const std::int64_t> receive_rows,
                              std::span<const std::int64_t> send_rows) {
  check_buffer(output, "output");
  check_buffer(input, "input");
  const std::int64_t bytes = row_bytes(input);
  if (bytes == 0) {
    return;  // rows without elements, on every rank alike
  }
  const std::int64_t send_unit = rows_per_unit(send_rows);
  const std::int64_t receive_unit = rows_per_unit(receive_rows);
  const RowUnits send = in_units(send_rows, send_unit);
  const RowUnits receive = in_units(receive_rows, receive_unit);
  const ContiguousType send_type(send_unit * bytes, state_);
  const ContiguousType receive_type(receive_unit * bytes, state_);
  ATHANOR_MPI_CALL(state_, MPI_Alltoallv(buffer_of(input), send.counts.data(), send.offsets.data(),
                                         send_type.get(), buffer_of(output), receive.counts.data(),
                                         receive.offsets.data(), receive_type.get(), state_.comm));
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
