#include "parallel/collectives/detail/collective_scope.hpp"

#include "parallel/collectives/collective_check.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel::detail {
namespace {

base::Span span_of(const Communicator& comm, const CollectiveCall& call, std::int64_t number) {
  base::Span span;
  span.kind = base::SpanKind::collective;
  span.name = call.operation;
  span.group = comm.name();
  span.bytes = call.bytes;
  span.number = number;
  span.site = call.site;
  if (comm.state() != nullptr) {
    span.group = comm.state()->unique_name;
    span.members = comm.state()->world_ranks;
  }
  return span;
}

}  // namespace

CollectiveScope::CollectiveScope(const Communicator& comm, const CollectiveCall& call, std::int64_t number)
    : span_(span_of(comm, call, number)), traffic_(comm.traffic(), call.purpose, call.bytes) {
  if (CollectiveCheck* check = CollectiveCheck::active(); check != nullptr && comm.size() > 1) {
    check->compare(comm, call, number);
  }
}

}  // namespace athanor::parallel::detail
