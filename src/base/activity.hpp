// What this process is doing: named spans of work, for those who watch it (watchdog, trace, stragglers).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/call_site.hpp"

namespace athanor::base {

/// What a span is for: `step` and `phase` are of the training loop, `wait` is standing still for another rank
/// outside a collective, `io` is work on files.
enum class SpanKind { step, phase, compute, collective, wait, io };

/// One stretch of work. Texts and members live as long as the span.
struct Span {
  SpanKind kind = SpanKind::compute;
  std::string_view name{};         ///< "forward", "all_to_all_v"
  std::string_view group{};        ///< of a collective: the communicator's name
  std::int64_t bytes = 0;          ///< of a collective: what this rank sends to others
  std::int64_t number = 0;         ///< of a step: the step; of a collective: how many its group began before
  CallSite site{};                 ///< of a collective: who called it
  std::span<const int> members{};  ///< of a collective: the world ranks of its group, by rank in it
};

/// Sees spans begin and end, on the threads that open them. May see the end of a span whose begin it missed.
class SpanObserver {
 public:
  virtual ~SpanObserver() = default;
  /// Quick, and without opening spans.
  virtual void begin(const Span& span) noexcept = 0;
  virtual void end(const Span& span) noexcept = 0;
};

/// Shows `observer` all spans of the process while this lives. Waits for calls under way when it ends.
class SpanObservation {
 public:
  explicit SpanObservation(SpanObserver& observer);
  ~SpanObservation();
  SpanObservation(const SpanObservation&) = delete;
  SpanObservation& operator=(const SpanObservation&) = delete;

 private:
  SpanObserver& observer_;
};

/// Opens a span until it goes out of scope; costs an atomic load while nobody watches.
class ScopedSpan {
 public:
  explicit ScopedSpan(const Span& span);
  ScopedSpan(SpanKind kind, std::string_view name) : ScopedSpan(Span{.kind = kind, .name = name}) {}
  ~ScopedSpan();
  ScopedSpan(const ScopedSpan&) = delete;
  ScopedSpan& operator=(const ScopedSpan&) = delete;

 private:
  Span span_;
};

}  // namespace athanor::base
