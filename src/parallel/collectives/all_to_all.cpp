#include <numeric>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/shapes.hpp"

namespace athanor::parallel {

at::Tensor all_to_all_v(const at::Tensor& input, std::span<const std::int64_t> send_rows,
                        std::span<const std::int64_t> receive_rows, const Communicator& comm,
                        Traffic purpose) {
  const auto size = static_cast<std::size_t>(comm.size());
  ATHANOR_CHECK(input.dim() >= 1, "all_to_all_v on group {} got a scalar", comm.name());
  ATHANOR_CHECK(send_rows.size() == size && receive_rows.size() == size,
                "all_to_all_v on group {} of {} ranks got {} send and {} receive counts", comm.name(), size,
                send_rows.size(), receive_rows.size());
  const std::int64_t sent = detail::sum_of_counts(send_rows, comm);
  const std::int64_t received = detail::sum_of_counts(receive_rows, comm);
  const auto own = static_cast<std::size_t>(comm.rank());
  ATHANOR_CHECK(sent == input.size(0), "all_to_all_v on group {}, rank {}: counts ask to send {} rows of {}",
                comm.name(), comm.rank(), sent, input.size(0));
  ATHANOR_CHECK(send_rows[own] == receive_rows[own],
                "all_to_all_v on group {}, rank {}: {} rows to itself but {} from itself", comm.name(),
                comm.rank(), send_rows[own], receive_rows[own]);
  if (size == 1) {
    return input;
  }
  const at::Tensor source = input.contiguous();
  at::Tensor output = at::empty(detail::with_rows(source, received), source.options());
  comm.traffic().add(purpose, (sent - send_rows[own]) * detail::row_bytes(source));
  comm.backend().all_to_all_v(output, source, receive_rows, send_rows);
  return output;
}

at::Tensor exchange_counts(const at::Tensor& counts, const Communicator& comm, Traffic purpose) {
  ATHANOR_CHECK(counts.scalar_type() == at::kLong && counts.dim() >= 1 && counts.size(0) == comm.size(),
                "exchange_counts on group {} of {} ranks needs an int64 tensor with one row for each rank",
                comm.name(), comm.size());
  const std::vector<std::int64_t> ones(static_cast<std::size_t>(comm.size()), 1);
  return all_to_all_v(counts, ones, ones, comm, purpose);
}

}  // namespace athanor::parallel
