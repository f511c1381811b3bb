#include "parallel/communicator.hpp"

#include <utility>

#include "parallel/collectives/self_backend.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {

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
  MPI_Comm comm = MPI_COMM_NULL;
  ATHANOR_MPI_CALL(*state_, MPI_Comm_split(state_->comm, color < 0 ? MPI_UNDEFINED : color, key, &comm));
  if (comm == MPI_COMM_NULL) {
    return {};
  }
  return Communicator(detail::make_state(comm, state_->name + "." + name, state_->traffic));
}

Communicator Communicator::duplicate(const std::string& name) const {
  if (!state_) {
    return {};
  }
  MPI_Comm comm = MPI_COMM_NULL;
  ATHANOR_MPI_CALL(*state_, MPI_Comm_dup(state_->comm, &comm));
  return Communicator(detail::make_state(comm, state_->name + "." + name, state_->traffic));
}

void Communicator::barrier() const {
  backend().barrier();
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
