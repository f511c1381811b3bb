// What every command needs of the job it runs in: agreement on errors, ranks on a machine, threads.
#pragma once

#include <exception>
#include <functional>
#include <string>

#include "base/error.hpp"
#include "parallel/communicator.hpp"

namespace athanor::app {

/// Runs `action` on every rank. When it throws anywhere, every rank throws one and the same Error: the
/// message that all ranks have in common, or that of the first rank that failed, which it names. Collective
/// over `world`; `action` must not be collective.
void run_agreed(const parallel::Communicator& world, const std::function<void()>& action);

/// Ranks of the job on this rank's machine. Collective.
int count_local_ranks(const parallel::Communicator& world);

/// Gives each rank of this machine its part of the cores (at least one thread), unless OMP_NUM_THREADS says
/// otherwise; warns when there are more ranks than cores.
void share_cores(int local_ranks);

/// Throws ConfigError naming the first key whose value is not the same on all ranks. Collective.
void check_same_config(const std::string& ini, const parallel::Communicator& world);

/// What an exception says, without LibTorch's stack of addresses.
std::string message_of(const std::exception& error);

/// "athanor: error: ..." on stderr.
void print_error(const std::string& message);

}  // namespace athanor::app
