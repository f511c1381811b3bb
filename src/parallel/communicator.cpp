#include "parallel/communicator.hpp"

#include <memory>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "parallel/collectives/detail/collective_scope.hpp"
#include "parallel/collectives/self_backend.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {
namespace {

enum class Use { tensors, hosts };

// Takes over `comm`, made of `parent` under this name. The count tells it from earlier ones of that name.
std::unique_ptr<detail::CommunicatorState> make_child(detail::CommunicatorState& parent, MPI_Comm comm,
                                                      const std::string& name, int count, Use use) {
  auto child = detail::make_state(comm, parent.name + "." + name, parent.traffic, parent.algorithms);
  child->unique_name =
      fmt::format("{}.{}{}", parent.unique_name, name, count == 1 ? "" : fmt::format("#{}", count));
  if (parent.nccl != nullptr && use == Use::tensors) {
    child->nccl = parent.nccl;
    detail::use_nccl(*child);
  }
  return child;
}

Communicator duplicate_for(Use use, const Communicator& parent, const std::string& name) {
  if (parent.is_null()) {
    return {};
  }
  detail::CommunicatorState& state = *parent.state();
  const detail::CollectiveScope scope(parent, {.operation = "duplicate", .site = base::CallSite::current()});
  const int count = ++state.children[name];
  MPI_Comm comm = MPI_COMM_NULL;
  ATHANOR_MPI_CALL(state, MPI_Comm_dup(state.comm, &comm));
  return Communicator(make_child(state, comm, name, count, use));
}

}  // namespace

Communicator detail::duplicate_for_hosts(const Communicator& comm, const std::string& name) {
  return duplicate_for(Use::hosts, comm, name);
}

Communicator::Communicator() = default;
Communicator::~Communicator() = default;
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;

Communicator::Communicator(std::unique_ptr<detail::CommunicatorState> state) : state_(std::move(state)) {}

int Communicator::rank() const noexcept {
  return state_ ? state_->rank : 0;
}

int Communicator::size() const noexcept {
  return state_ ? state_->size : 1;
}

const std::string& Communicator::name() const noexcept {
  static const std::string null_name = "null";
  return state_ ? state_->name : null_name;
}

Communicator Communicator::split(int color, int key, const std::string& name) const {
  if (!state_) {
    return {};
  }
  const detail::CollectiveScope scope(*this, {.operation = "split", .site = base::CallSite::current()});
  const int count = ++state_->children[name];
  MPI_Comm comm = MPI_COMM_NULL;
  ATHANOR_MPI_CALL(*state_, MPI_Comm_split(state_->comm, color < 0 ? MPI_UNDEFINED : color, key, &comm));
  if (comm == MPI_COMM_NULL) {
    return {};
  }
  return Communicator(make_child(*state_, comm, name, count, Use::tensors));
}

Communicator Communicator::duplicate(const std::string& name) const {
  return duplicate_for(Use::tensors, *this, name);
}

void Communicator::barrier(base::CallSite site) const {
  const detail::CollectiveScope scope(*this, {.operation = "barrier", .site = site});
  backend().barrier();
}

std::int64_t Communicator::count_collective() const noexcept {
  return state_ ? state_->collectives++ : 0;
}

TrafficCounters& Communicator::traffic() const noexcept {
  static TrafficCounters null_traffic;  // a null communicator sends nothing, so this stays zero
  return state_ ? *state_->traffic : null_traffic;
}

CollectiveBackend& Communicator::backend() const noexcept {
  static SelfBackend null_backend;
  return state_ ? *state_->backend : null_backend;
}

}  // namespace athanor::parallel
