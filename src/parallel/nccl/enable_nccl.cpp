#include "parallel/nccl/enable_nccl.hpp"

#include <utility>

#include "base/error.hpp"
#include "parallel/detail/mpi_handle.hpp"
#include "parallel/nccl/nccl_backend.hpp"
#include "parallel/nccl/nccl_runtime.hpp"

namespace athanor::parallel {
namespace {

// Backward passes of GPU tensors run on a thread of their own while the main one waits for it.
void check_thread_level(const detail::CommunicatorState& state) {
  int level = MPI_THREAD_SINGLE;
  ATHANOR_MPI_CALL(state, MPI_Query_thread(&level));
  if (level < MPI_THREAD_SERIALIZED) {
    throw base::CommError(
        "this MPI gives thread level {} (with GPUs MPI_THREAD_SERIALIZED, {}, is needed: backward passes run "
        "on "
        "another thread) use an MPI library built with thread support",
        level, static_cast<int>(MPI_THREAD_SERIALIZED));
  }
}

}  // namespace

void enable_nccl(Communicator& comm, std::shared_ptr<NcclApi> api, const NcclOptions& options) {
  ATHANOR_CHECK(!comm.is_null(), "NCCL for a null communicator");
  detail::CommunicatorState& state = *comm.state();
  check_thread_level(state);
  state.nccl = std::make_shared<NcclRuntime>(std::move(api), options);
  detail::use_nccl(state);
  state.nccl->open_node_channel(state);
}

bool uses_nccl(const Communicator& comm) {
  return dynamic_cast<const NcclBackend*>(&comm.backend()) != nullptr;
}

void detail::use_nccl(CommunicatorState& state) {
  if (state.size > 1) {
    state.backend = std::make_unique<NcclBackend>(state, state.nccl);
  }
}

}  // namespace athanor::parallel
