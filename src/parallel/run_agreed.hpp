// Work that may fail on some ranks only, ended alike on all of them.
#pragma once

#include <exception>
#include <functional>
#include <string>

#include "parallel/communicator.hpp"

namespace athanor::parallel {

/// Runs `action` on every rank; if it throws anywhere, every rank throws the same base::Error: that of the
/// first rank that failed, with its exit code, named by rank unless all ranks failed alike. Collective over
/// `comm`; `action` must not communicate over it.
void run_agreed(const Communicator& comm, const std::function<void()>& action);

/// What an exception says, without LibTorch's stack of addresses.
std::string message_of(const std::exception& error);

}  // namespace athanor::parallel
