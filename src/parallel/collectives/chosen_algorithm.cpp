// The part of algorithm_table.hpp that knows communicators; the table itself is plain values.
#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/communicator.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {

AlgorithmTable& algorithms_of(const Communicator& comm) {
  static AlgorithmTable null_table;
  return comm.is_null() ? null_table : *comm.state()->algorithms;
}

Algorithm chosen_algorithm(const Communicator& comm, Operation operation, std::int64_t bytes) {
  return algorithms_of(comm).choose(operation, comm.size(), bytes);
}

}  // namespace athanor::parallel
