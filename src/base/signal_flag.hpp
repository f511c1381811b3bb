// Signals that ask the process to save its work and end: the handler only notes them.
#pragma once

#include <string>

namespace athanor::base {

/// From now on SIGUSR1, SIGUSR2 and SIGTERM end nothing: the first of them is noted and later ones change
/// nothing. System calls they interrupt are restarted. Call it before anything that starts threads.
void catch_stop_signals();

/// Writing to a pipe that nobody reads any more (`athanor ... | head`) is an error of that write from now on,
/// not the end of the process.
void ignore_closed_pipes();

/// The first signal that was noted; 0: none. May be called from any thread.
int stop_signal() noexcept;

/// "SIGUSR1", "SIGUSR2", "SIGTERM"; "signal N" for others.
std::string signal_name(int signal);

/// Tests: as if none had come.
void forget_stop_signal() noexcept;

}  // namespace athanor::base
