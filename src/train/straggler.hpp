// Ranks that make the others wait: each rank's own time for a step, without the waits for other ranks,
// compared over the role.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/activity.hpp"
#include "parallel/communicator.hpp"

namespace athanor::train {

/// Parts of a step that are compared; time outside the named ones is `other`.
inline constexpr std::array<std::string_view, 7> straggler_phases = {
    "data", "forward", "backward", "reduce gradients", "update", "gather parameters", "other"};
inline constexpr std::size_t num_straggler_phases = straggler_phases.size();

/// Own seconds by phase.
using PhaseTimes = std::array<double, num_straggler_phases>;

/// Charges the time of the thread that made it to phases of the step, by the spans that this thread opens.
/// Time in collectives, in waits for other ranks, in evaluations and saves is nobody's.
class OwnTime final : public base::SpanObserver {
 public:
  OwnTime();
  void begin(const base::Span& span) noexcept override;
  void end(const base::Span& span) noexcept override;
  /// What was charged since the last call. On the thread that made it.
  PhaseTimes take();

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t max_depth = 32;

  void charge() noexcept;

  std::thread::id thread_;
  Clock::time_point last_ = Clock::now();
  PhaseTimes times_{};
  std::size_t depth_ = 0;
  std::array<std::int8_t, max_depth> open_{};  // phase of each open span; beyond max_depth: the last one's
};

struct StragglerOptions {
  double score = 0.5;       ///< a rank with a smaller one is named; 0: nobody is
  double least_s = 0.01;    ///< it is that much slower than the median at least
  std::int64_t window = 8;  ///< steps whose median counts: one slow step is no straggler
  std::int64_t min_steps = 3;
};

/// A rank's place in the comparison.
struct StragglerScore {
  int rank = 0;        ///< in the role
  double score = 1.0;  ///< median of the ranks / own time
  double own_s = 0.0;  ///< of a step
  double median_s = 0.0;
  std::string_view phase{};  ///< in which it loses most
  bool is_straggler = false;
};

/// Compares ranks' own times of a step ([rank][phase]); the slowest first, then all other stragglers.
std::vector<StragglerScore> compare_times(const std::vector<PhaseTimes>& times,
                                          const StragglerOptions& options);

/// One rank's part in looking for stragglers.
class StragglerWatch {
 public:
  /// Collective over `role`.
  StragglerWatch(const StragglerOptions& options, const parallel::Communicator& role);

  /// After each step.
  void note_step();
  /// The slowest rank first, then all other stragglers; the same on all ranks. Names stragglers in the log of
  /// rank 0. Nothing before there are steps enough. Collective over `role`; every rank calls it after the
  /// same steps.
  std::vector<StragglerScore> compare(const parallel::Communicator& role);

 private:
  StragglerOptions options_;
  std::vector<std::string> hosts_;  // by rank
  OwnTime own_;
  base::SpanObservation observation_{own_};
  std::deque<PhaseTimes> steps_;
};

}  // namespace athanor::train
