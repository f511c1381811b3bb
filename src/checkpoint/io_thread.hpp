// The one thread of the process that calls HDF5 (the library is not thread-safe), and that does all
// checkpoint file work. It makes no MPI call.
#pragma once

#include <functional>
#include <future>

namespace athanor::checkpoint {

/// Runs `task` on the owner thread after all earlier ones; the future has its exception. The thread starts at
/// first use and ends, after all tasks, at process exit.
std::future<void> post_to_io_thread(std::function<void()> task);
/// Runs `task` there and waits; rethrows. Called from the owner thread itself it runs at once.
void run_on_io_thread(const std::function<void()>& task);

}  // namespace athanor::checkpoint
