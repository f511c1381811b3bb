#include "base/signal_flag.hpp"

#include <fmt/format.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <cerrno>

#include "base/error.hpp"

namespace athanor::base {
namespace {

constexpr std::array kStopSignals{SIGUSR1, SIGUSR2, SIGTERM};

// Written by the handler: nothing but a lock-free atomic may be touched there.
std::atomic<int> noted{0};
static_assert(std::atomic<int>::is_always_lock_free);

extern "C" void note_signal(int signal) {
  int none = 0;
  noted.compare_exchange_strong(none, signal, std::memory_order_relaxed);
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  // A handler that interrupts another would note its signal first, though it came later.
  for (const int signal : kStopSignals) {
    sigaddset(&action.sa_mask, signal);
  }
  for (const int signal : kStopSignals) {
    if (sigaction(signal, &action, nullptr) != 0) {
      throw InternalError("{} cannot be caught (errno {})", signal_name(signal), errno);
    }
  }
}

void ignore_closed_pipes() {
  signal(SIGPIPE, SIG_IGN);
}

int stop_signal() noexcept {
  return noted.load(std::memory_order_relaxed);
}

std::string signal_name(int signal) {
  switch (signal) {
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    case SIGTERM:
      return "SIGTERM";
    default:
      return fmt::format("signal {}", signal);
  }
}

void forget_stop_signal() noexcept {
  noted.store(0, std::memory_order_relaxed);
}

}  // namespace athanor::base
