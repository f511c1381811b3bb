#include "parallel/detail/mpi_handle.hpp"

#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "parallel/collectives/mpi_backend.hpp"
#include "parallel/collectives/self_backend.hpp"

namespace athanor::parallel::detail {
namespace {

std::string mpi_error_text(int code) {
  std::array<char, MPI_MAX_ERROR_STRING + 1> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) {
    return "MPI error code " + std::to_string(code);
  }
  return std::string(text.data(), static_cast<std::size_t>(length));
}

bool mpi_is_running() {
  int initialized = 0;
  int finalized = 0;
  return MPI_Initialized(&initialized) == MPI_SUCCESS && MPI_Finalized(&finalized) == MPI_SUCCESS &&
         initialized != 0 && finalized == 0;
}

// Local: no other rank takes part.
std::vector<int> find_world_ranks(const CommunicatorState& state) {
  MPI_Group group = MPI_GROUP_NULL;
  MPI_Group world = MPI_GROUP_NULL;
  ATHANOR_MPI_CALL(state, MPI_Comm_group(state.comm, &group));
  ATHANOR_MPI_CALL(state, MPI_Comm_group(MPI_COMM_WORLD, &world));
  std::vector<int> ranks(static_cast<std::size_t>(state.size));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::vector<int> world_ranks(ranks.size());
  ATHANOR_MPI_CALL(state,
                   MPI_Group_translate_ranks(group, state.size, ranks.data(), world, world_ranks.data()));
  ATHANOR_MPI_CALL(state, MPI_Group_free(&world));
  ATHANOR_MPI_CALL(state, MPI_Group_free(&group));
  return world_ranks;
}

}  // namespace

CommunicatorState::~CommunicatorState() {
  if (comm == MPI_COMM_NULL || !mpi_is_running()) {
    return;
  }
  if (const int code = MPI_Comm_free(&comm); code != MPI_SUCCESS) {
    try {
      base::log_local(base::LogLevel::warning,
                      "MPI_Comm_free failed on group " + name + ": " + mpi_error_text(code));
    } catch (...) {  // a destructor must not throw, and there is nobody left to tell
    }
  }
}

std::unique_ptr<CommunicatorState> make_state(MPI_Comm comm, std::string name,
                                              std::shared_ptr<TrafficCounters> traffic,
                                              std::shared_ptr<AlgorithmTable> algorithms) {
  auto state = std::make_unique<CommunicatorState>();
  state->comm = comm;
  state->name = std::move(name);
  state->unique_name = state->name;
  state->traffic = std::move(traffic);
  state->algorithms = std::move(algorithms);
  ATHANOR_MPI_CALL(*state, MPI_Comm_set_errhandler(state->comm, MPI_ERRORS_RETURN));
  ATHANOR_MPI_CALL(*state, MPI_Comm_rank(state->comm, &state->rank));
  ATHANOR_MPI_CALL(*state, MPI_Comm_size(state->comm, &state->size));
  state->world_ranks = find_world_ranks(*state);
  if (state->size == 1) {
    state->backend = std::make_unique<SelfBackend>();
  } else {
    state->backend = std::make_unique<MpiBackend>(*state);
  }
  return state;
}

void check_mpi(int code, std::string_view call, std::string_view group, int rank, int size) {
  if (code != MPI_SUCCESS) {
    throw base::CommError(
        "{} failed on rank {} of {} of group {} ({}) check that all ranks run the same program and "
        "configuration and "
        "that the network between them works",
        call, rank, size, group, mpi_error_text(code));
  }
}

}  // namespace athanor::parallel::detail
