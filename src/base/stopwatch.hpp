// Wall-clock intervals.
#pragma once

#include <chrono>

namespace athanor::base {

/// Seconds since construction or the last restart (steady clock).
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  /// Returns the seconds so far and starts again from zero.
  double restart() {
    const double elapsed = seconds();
    start_ = std::chrono::steady_clock::now();
    return elapsed;
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Adds the lifetime of the guard to `total_s`.
class ScopedTimer {
 public:
  explicit ScopedTimer(double& total_s) : total_s_(total_s) {}
  ~ScopedTimer() { total_s_ += watch_.seconds(); }
  ScopedTimer(const ScopedTimer&) = delete;
  ScopedTimer& operator=(const ScopedTimer&) = delete;

 private:
  double& total_s_;
  Stopwatch watch_;
};

}  // namespace athanor::base
