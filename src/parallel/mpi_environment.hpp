// Start and end of MPI, and the end of the whole job on an error.
#pragma once

#include "parallel/communicator.hpp"

namespace athanor::parallel {

/// Initialises MPI (thread level serialized where the library has it, at least funneled) and finalises it
/// when destroyed. Create exactly one, in main().
/// Throws CommError when MPI is already initialised or cannot give the thread level.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  /// A duplicate of MPI_COMM_WORLD named "world", with MPI_ERRORS_RETURN. Collective over all ranks.
  Communicator make_world() const;

  /// Ends every rank of the job with `exit_code` (MPI_Abort). For a rank that cannot go on: leaving quietly
  /// would hang the others.
  [[noreturn]] void abort_job(int exit_code) const noexcept;
};

}  // namespace athanor::parallel
