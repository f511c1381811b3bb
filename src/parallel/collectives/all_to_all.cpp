#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/collective_scope.hpp"
#include "parallel/collectives/detail/shapes.hpp"

namespace athanor::parallel {
namespace {

// The rows of a contiguous tensor by rank.
std::vector<MutableBytes> row_parts(const at::Tensor& tensor, std::span<const std::int64_t> rows) {
  const std::int64_t row_elements = detail::row_elements(tensor);
  std::vector<MutableBytes> parts;
  parts.reserve(rows.size());
  std::int64_t first = 0;
  for (const std::int64_t count : rows) {
    parts.push_back(detail::mutable_bytes_of(tensor, first * row_elements, count * row_elements));
    first += count;
  }
  return parts;
}

at::Tensor rows_of(const at::Tensor& tensor, std::span<const std::int64_t> rows, int rank) {
  return tensor.narrow(0, detail::sum_before(rows, rank), rows[static_cast<std::size_t>(rank)]);
}

void check_counts(const at::Tensor& input, std::span<const std::int64_t> send_rows,
                  std::span<const std::int64_t> receive_rows, const Communicator& comm) {
  const auto size = static_cast<std::size_t>(comm.size());
  ATHANOR_CHECK(input.dim() >= 1, "all_to_all_v on group {} got a scalar", comm.name());
  ATHANOR_CHECK(send_rows.size() == size && receive_rows.size() == size,
                "all_to_all_v on group {} of {} ranks got {} send and {} receive counts", comm.name(), size,
                send_rows.size(), receive_rows.size());
  const std::int64_t sent = detail::sum_of_counts(send_rows, comm);
  ATHANOR_CHECK(sent == input.size(0), "all_to_all_v on group {}, rank {}: counts ask to send {} rows of {}",
                comm.name(), comm.rank(), sent, input.size(0));
  const auto own = static_cast<std::size_t>(comm.rank());
  ATHANOR_CHECK(send_rows[own] == receive_rows[own],
                "all_to_all_v on group {}, rank {}: {} rows to itself but {} from itself", comm.name(),
                comm.rank(), send_rows[own], receive_rows[own]);
}

}  // namespace

at::Tensor all_to_all_v(const at::Tensor& input, std::span<const std::int64_t> send_rows,
                        std::span<const std::int64_t> receive_rows, const Communicator& comm, Traffic purpose,
                        CallSite site) {
  check_counts(input, send_rows, receive_rows, comm);
  if (comm.size() == 1) {
    return input;
  }
  const at::Tensor output =
      at::empty(detail::with_rows(input, detail::sum_of_counts(receive_rows, comm)), input.options());
  all_to_all_v_into(output, input, send_rows, receive_rows, comm, purpose, site);
  return output;
}

void all_to_all_v_into(const at::Tensor& output, const at::Tensor& input,
                       std::span<const std::int64_t> send_rows, std::span<const std::int64_t> receive_rows,
                       const Communicator& comm, Traffic purpose, CallSite site) {
  check_counts(input, send_rows, receive_rows, comm);
  ATHANOR_CHECK(output.dim() == input.dim() && output.size(0) == detail::sum_of_counts(receive_rows, comm) &&
                    detail::row_bytes(output) == detail::row_bytes(input) &&
                    output.dtype() == input.dtype() && output.device() == input.device(),
                "all_to_all_v_into on group {}, rank {}: the output does not hold the rows to receive",
                comm.name(), comm.rank());
  const at::Tensor source = input.contiguous();
  const auto own = static_cast<std::size_t>(comm.rank());
  const std::vector<MutableBytes> receive = row_parts(output, receive_rows);
  const std::vector<MutableBytes> send = row_parts(source, send_rows);
  if (source.is_cpu()) {
    std::ranges::copy(send[own], receive[own].begin());
  } else {
    rows_of(output, receive_rows, comm.rank())
        .copy_(rows_of(source, send_rows, comm.rank()), /*non_blocking=*/true);
  }
  const detail::CollectiveScope scope(comm,
                                      {.operation = "all_to_all_v",
                                       .purpose = purpose,
                                       .bytes = (source.size(0) - send_rows[own]) * detail::row_bytes(source),
                                       .site = site,
                                       .dtype = c10::toString(source.scalar_type()),
                                       .elements = detail::row_elements(source),
                                       .sent_rows = send_rows,
                                       .received_rows = receive_rows});
  comm.backend().exchange(receive, std::vector<Bytes>(send.begin(), send.end()), source.device());
}

at::Tensor exchange_counts(const at::Tensor& counts, const Communicator& comm, Traffic purpose,
                           CallSite site) {
  ATHANOR_CHECK(counts.scalar_type() == at::kLong && counts.dim() >= 1 && counts.size(0) == comm.size(),
                "exchange_counts on group {} of {} ranks needs an int64 tensor with one row for each rank",
                comm.name(), comm.size());
  const std::vector<std::int64_t> ones(static_cast<std::size_t>(comm.size()), 1);
  return all_to_all_v(counts, ones, ones, comm, purpose, site);
}

}  // namespace athanor::parallel
