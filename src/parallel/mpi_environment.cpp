#include "parallel/mpi_environment.hpp"

#include <cstdlib>
#include <exception>
#include <memory>
#include <string_view>

#include "base/error.hpp"
#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {
namespace {

void check_start(int code, std::string_view call) {
  detail::check_mpi(code, call, "world", 0, 1);
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int initialized = 0;
  check_start(MPI_Initialized(&initialized), "MPI_Initialized");
  if (initialized != 0) {
    throw base::CommError(
        "MPI is already initialised (one MpiEnvironment may exist) create it once, in main()");
  }
  int provided = MPI_THREAD_SINGLE;
  check_start(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    throw base::CommError(
        "this MPI gives thread level {} (MPI_THREAD_FUNNELED, {}, is needed) use an MPI library "
        "built with thread support",
        provided, static_cast<int>(MPI_THREAD_FUNNELED));
  }
  // The predefined communicators abort on errors by default, also on errors of calls that name no
  // communicator.
  check_start(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_start(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() > 0) {
    abort_job(static_cast<int>(
        base::ExitCode::internal));  // finalising would wait for ranks that wait for this one
  }
  int finalized = 0;
  if (MPI_Finalized(&finalized) == MPI_SUCCESS && finalized == 0) {
    MPI_Finalize();
  }
}

Communicator MpiEnvironment::make_world() const {
  MPI_Comm comm = MPI_COMM_NULL;
  check_start(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup(MPI_COMM_WORLD)");
  return Communicator(detail::make_state(comm, "world", std::make_shared<TrafficCounters>(),
                                         std::make_shared<AlgorithmTable>()));
}

void MpiEnvironment::abort_job(int exit_code) const noexcept {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::abort();  // MPI_Abort does not return; this only tells the compiler
}

}  // namespace athanor::parallel
