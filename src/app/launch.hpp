// What every command needs of the job it runs in: one configuration, ranks on a machine, threads.
#pragma once

#include <string>

#include "parallel/communicator.hpp"

namespace athanor::app {

/// Cores of the machine, or of the container's quota. Not this process's affinity: mpirun may bind each rank
/// to one.
int machine_cores();

/// Ranks of the job on this rank's machine. Collective.
int count_local_ranks(const parallel::Communicator& world);

/// This rank's place among the ranks of its machine, in the order of the job. Collective.
int find_local_rank(const parallel::Communicator& world);

/// Gives each rank of this machine its part of the cores (at least one thread), unless OMP_NUM_THREADS says
/// otherwise; warns when there are more ranks than cores.
void share_cores(int local_ranks);

/// Throws ConfigError naming the first key whose value is not the same on all ranks. Collective.
void check_same_config(const std::string& ini, const parallel::Communicator& world);

/// Makes `value` of parallel.collectives the algorithms of all communicators of `world`; rank 0 reads the
/// file, if it names one. Throws ConfigError and MissingInputError. Collective.
void choose_collectives(const std::string& value, const parallel::Communicator& world);

/// "athanor: error: ..." on stderr.
void print_error(const std::string& message);

}  // namespace athanor::app
