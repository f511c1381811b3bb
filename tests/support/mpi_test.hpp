// What an MPI test sees of its launch.
#pragma once

#include "parallel/communicator.hpp"

namespace athanor::tests {

/// The world of this test run; lives for the whole process. With ATHANOR_TEST_BACKEND=nccl_over_mpi in the
/// environment its collectives go through NcclBackend and the test double of NCCL (nccl_over_mpi.hpp).
const parallel::Communicator& world();

/// Returns when all that was sent on `comm` before has arrived on this rank. For tests that leave messages
/// which nobody receives: MPI gives the number of a freed communicator to the next one, with what comes late.
/// Collective over it; messages of other communicators may overtake, so each one needs its own.
void let_all_arrive(const parallel::Communicator& comm);

}  // namespace athanor::tests
