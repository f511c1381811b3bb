// Where this process is, kept up by its own spans: what the watchdog tells others.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <thread>

#include "base/activity.hpp"
#include "base/heartbeat.hpp"

namespace athanor::train {

/// Follows the spans of the thread that made it. A span of a step, phase, computation or collective that
/// begins or ends is progress; waits and work on files are not.
class ActivityBoard final : public base::SpanObserver {
 public:
  ActivityBoard() : thread_(std::this_thread::get_id()) {}

  void begin(const base::Span& span) noexcept override;
  void end(const base::Span& span) noexcept override;

  /// Fills in step, phase, place, collective and groups, and returns the number of times there was progress.
  /// From any thread.
  std::uint64_t read(base::Heartbeat& heartbeat) const;

 private:
  static constexpr std::size_t max_depth = 16;
  struct Open {
    base::SpanKind kind = base::SpanKind::compute;
    base::FixedText<24> name;
  };

  bool is_followed() const noexcept { return std::this_thread::get_id() == thread_; }
  void note_collective(const base::Span& span) noexcept;

  std::thread::id thread_;
  mutable std::mutex mutex_;  // held for the time of a copy
  std::uint64_t progress_ = 0;
  std::size_t depth_ = 0;  // open spans; those beyond max_depth are only counted
  std::array<Open, max_depth> open_{};
  base::Heartbeat shown_;  // the fields about collectives and the step
};

}  // namespace athanor::train
