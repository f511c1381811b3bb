// Turning a communicator, and all that are made of it, to NCCL.
#pragma once

#include <memory>

#include "parallel/communicator.hpp"
#include "parallel/nccl/nccl_api.hpp"
#include "parallel/nccl/options.hpp"

namespace athanor::parallel {

/// From now on `comm` and every communicator split or duplicated from it move tensors of the table's device
/// through NCCL (nccl_backend.hpp); what lies on the host goes through MPI as before. Each such group gets an
/// NCCL communicator when it is made; groups of messages between hosts (PointToPoint, Mailbox,
/// CollectiveCheck) get none. To be called at start, on the world, once the rank has its GPU, before anything
/// is split from it. Collective. Throws CommError when a rank does not come, when NCCL does not start, or
/// when this MPI does not let the threads of backward passes make calls.
void enable_nccl(Communicator& comm, std::shared_ptr<NcclApi> api, const NcclOptions& options = {});

/// Whether tensors of a device go through NCCL on this group.
bool uses_nccl(const Communicator& comm);

}  // namespace athanor::parallel
