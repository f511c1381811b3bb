// Keeps the spans of some steps in memory.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/activity.hpp"

namespace athanor::train {

/// One span that has ended. Texts are cut to their room, because those of a span need not outlive it.
struct TraceEvent {
  base::SpanKind kind = base::SpanKind::compute;
  int thread = 0;             ///< in the order in which threads were first seen
  std::int64_t begin_ns = 0;  ///< of the steady clock
  std::int64_t end_ns = 0;
  std::int64_t bytes = 0;
  std::int64_t number = 0;
  const char* file = "";  ///< of the call site
  int line = 0;
  std::array<char, 40> name{};
  std::array<char, 40> group{};
};

/// Records the spans that begin between the end of the step before `first` (its own begin, if that is missed)
/// and the begin of the step after `last`. All room is allocated when it is made; a span costs two looks at
/// the clock and two short copies. Thread-safe. What finds no room is counted.
class TraceRecorder final : public base::SpanObserver {
 public:
  explicit TraceRecorder(std::size_t capacity);
  /// Steps as the `step` spans number them. Before the first of them begins.
  void set_steps(std::int64_t first, std::int64_t last);
  void begin(const base::Span& span) noexcept override;
  void end(const base::Span& span) noexcept override;

  /// The events so far, in the order in which they ended on their threads. While nothing is recorded.
  std::vector<TraceEvent> events() const;
  /// Spans that found no room.
  std::int64_t num_lost() const;

 private:
  struct ThreadSpans;
  ThreadSpans& spans_of_this_thread() noexcept;

  const std::uint64_t id_;  // tells recorders apart on threads that have seen another one
  std::vector<TraceEvent> events_;
  std::atomic<std::size_t> next_ = 0;
  std::atomic<int> threads_ = 0;
  std::atomic<std::int64_t> lost_ = 0;
  std::atomic<bool> records_ = false;
  std::int64_t first_step_ = 0;
  std::int64_t last_step_ = -1;
};

}  // namespace athanor::train
