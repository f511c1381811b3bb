// Waiting by looking, with a deadline.
#pragma once

#include <chrono>
#include <thread>
#include <utility>

#include "base/stopwatch.hpp"

namespace athanor::parallel::detail {

/// Asks `is_ready` until it says yes or `deadline_s` have passed; whether it did. A short wait is over after
/// some looks; a long one leaves the processor to those it waits for.
template <typename Ready>
bool poll_until(Ready&& is_ready, double deadline_s) {
  constexpr int looks_before_sleep = 20;
  constexpr auto pause_between_looks = std::chrono::microseconds(50);
  const base::Stopwatch watch;
  for (int looks = 0; !is_ready(); ++looks) {
    if (watch.seconds() > deadline_s) {
      return false;
    }
    if (looks < looks_before_sleep) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(pause_between_looks);
    }
  }
  return true;
}

}  // namespace athanor::parallel::detail
