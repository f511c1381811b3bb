// The MPI side of a Communicator. Only .cpp files of parallel include this (and with it mpi.h).
#pragma once

#include <mpi.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/collectives/backend.hpp"
#include "parallel/traffic.hpp"

namespace athanor::parallel {
class AlgorithmTable;
class Communicator;
class NcclRuntime;
}  // namespace athanor::parallel

namespace athanor::parallel::detail {

/// An owned communicator with what every message about it needs. Freed on destruction unless MPI has ended
/// before.
struct CommunicatorState {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  std::int64_t collectives = 0;  // begun by this rank
  std::string name;
  std::string unique_name;              // the same on all its ranks, and no other's
  std::map<std::string, int> children;  // communicators made of this one, by the name asked for
  std::vector<int> world_ranks;         // in MPI's world, by rank here
  std::shared_ptr<TrafficCounters> traffic;
  std::shared_ptr<AlgorithmTable> algorithms;  // of all communicators from one world
  std::shared_ptr<NcclRuntime> nccl;           // of those whose device tensors go through NCCL
  std::unique_ptr<CollectiveBackend> backend;

  CommunicatorState() = default;
  ~CommunicatorState();
  CommunicatorState(const CommunicatorState&) = delete;
  CommunicatorState& operator=(const CommunicatorState&) = delete;
};

/// Takes ownership of `comm` (not null) and sets MPI_ERRORS_RETURN on it: without that, checking return codes
/// is dead code.
std::unique_ptr<CommunicatorState> make_state(MPI_Comm comm, std::string name,
                                              std::shared_ptr<TrafficCounters> traffic,
                                              std::shared_ptr<AlgorithmTable> algorithms);

/// Gives the group of `state`, which has a `nccl`, a backend over NCCL. Collective.
void use_nccl(CommunicatorState& state);

/// As Communicator::duplicate, for messages between hosts: without NCCL.
Communicator duplicate_for_hosts(const Communicator& comm, const std::string& name);

/// Throws CommError naming the call, the group, the rank and MPI's reason unless `code` is MPI_SUCCESS.
void check_mpi(int code, std::string_view call, std::string_view group, int rank, int size);

}  // namespace athanor::parallel::detail

/// Makes an MPI call on the communicator of `state` (a CommunicatorState) and throws CommError when it fails.
#define ATHANOR_MPI_CALL(state, call) \
  ::athanor::parallel::detail::check_mpi((call), #call, (state).name, (state).rank, (state).size)
