#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/collective_scope.hpp"
#include "parallel/collectives/detail/shapes.hpp"

namespace athanor::parallel {

at::Tensor all_gather(const at::Tensor& input, const Communicator& comm, Traffic purpose, CallSite site) {
  ATHANOR_CHECK(input.dim() >= 1, "all_gather on group {} got a scalar", comm.name());
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), input.size(0));
  return all_gather_v(input, rows, comm, purpose, site);
}

at::Tensor all_gather_v(const at::Tensor& input, std::span<const std::int64_t> rows, const Communicator& comm,
                        Traffic purpose, CallSite site) {
  const auto size = static_cast<std::size_t>(comm.size());
  ATHANOR_CHECK(input.dim() >= 1, "all_gather_v on group {} got a scalar", comm.name());
  ATHANOR_CHECK(rows.size() == size, "all_gather_v on group {} of {} ranks got {} counts", comm.name(), size,
                rows.size());
  const std::int64_t total = detail::sum_of_counts(rows, comm);
  const std::int64_t own = rows[static_cast<std::size_t>(comm.rank())];
  ATHANOR_CHECK(own == input.size(0),
                "all_gather_v on group {}, rank {}: the counts say {} rows, the tensor has {}", comm.name(),
                comm.rank(), own, input.size(0));
  if (size == 1) {
    return input;
  }
  const at::Tensor source = input.contiguous();
  at::Tensor output = at::empty(detail::with_rows(source, total), source.options());
  const detail::CollectiveScope scope(comm, {.operation = "all_gather_v",
                                             .purpose = purpose,
                                             .bytes = detail::total_bytes(source) * (comm.size() - 1),
                                             .site = site,
                                             .dtype = c10::toString(source.scalar_type()),
                                             .elements = detail::row_elements(source),
                                             .gathered_rows = rows});
  comm.backend().all_gather_v(output, source, rows);
  return output;
}

void all_gather_into(at::Tensor& output, const at::Tensor& input, const Communicator& comm, Traffic purpose,
                     CallSite site) {
  ATHANOR_CHECK(input.dim() >= 1 && output.dim() >= 1 && output.is_contiguous(),
                "all_gather_into on group {} needs a contiguous output of at least one dimension",
                comm.name());
  ATHANOR_CHECK(output.size(0) == input.size(0) * comm.size() &&
                    output.numel() == input.numel() * comm.size() &&
                    output.scalar_type() == input.scalar_type(),
                "all_gather_into on group {} of {} ranks: {} elements of {} do not gather into {} of {}",
                comm.name(), comm.size(), input.numel(), c10::toString(input.scalar_type()), output.numel(),
                c10::toString(output.scalar_type()));
  const at::Tensor source = input.contiguous();
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), source.size(0));
  const detail::CollectiveScope scope(comm, {.operation = "all_gather_into",
                                             .purpose = purpose,
                                             .bytes = detail::total_bytes(source) * (comm.size() - 1),
                                             .site = site,
                                             .dtype = c10::toString(source.scalar_type()),
                                             .elements = detail::row_elements(source),
                                             .gathered_rows = rows});
  comm.backend().all_gather_v(output, source, rows);
}

}  // namespace athanor::parallel
