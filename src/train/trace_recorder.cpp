#include "train/trace_recorder.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string_view>

namespace athanor::train {
namespace {

constexpr std::size_t max_depth = 64;

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> count = 0;
  return ++count;
}

template <std::size_t size>
void copy_text(std::string_view text, std::array<char, size>& room) {
  const std::size_t length = std::min(text.size(), size - 1);
  std::memcpy(room.data(), text.data(), length);
  room[length] = '\0';
}

}  // namespace

/// The spans that are open on a thread.
struct TraceRecorder::ThreadSpans {
  struct Open {
    const base::Span* span = nullptr;
    std::int64_t begin_ns = 0;
  };
  std::uint64_t recorder = 0;
  int thread = 0;
  std::size_t depth = 0;
  std::array<Open, max_depth> open{};
};

TraceRecorder::TraceRecorder(std::size_t capacity) : id_(next_id()), events_(capacity) {}

void TraceRecorder::set_steps(std::int64_t first, std::int64_t last) {
  first_step_ = first;
  last_step_ = last;
}

TraceRecorder::ThreadSpans& TraceRecorder::spans_of_this_thread() noexcept {
  static thread_local ThreadSpans spans;
  if (spans.recorder != id_) {
    spans.recorder = id_;
    spans.thread = threads_++;
    spans.depth = 0;
  }
  return spans;
}

void TraceRecorder::begin(const base::Span& span) noexcept {
  if (span.kind == base::SpanKind::step) {
    records_ = span.number >= first_step_ && span.number <= last_step_;
  }
  if (!records_.load(std::memory_order_relaxed)) {
    return;
  }
  ThreadSpans& spans = spans_of_this_thread();
  if (spans.depth == max_depth) {
    ++lost_;
    return;
  }
  spans.open[spans.depth++] = {&span, now_ns()};
}

void TraceRecorder::end(const base::Span& span) noexcept {
  if (span.kind == base::SpanKind::step && span.number + 1 == first_step_) {
    records_ = first_step_ <= last_step_;
  }
  if (next_.load(std::memory_order_relaxed) == 0 && threads_.load(std::memory_order_relaxed) == 0) {
    return;  // nothing was ever recorded
  }
  ThreadSpans& spans = spans_of_this_thread();
  std::size_t place = spans.depth;
  while (place > 0 && spans.open[place - 1].span != &span) {
    --place;
  }
  if (place == 0) {
    return;  // its begin was not recorded
  }
  const std::int64_t begin_ns = spans.open[place - 1].begin_ns;
  spans.depth = place - 1;
  const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
  if (index >= events_.size()) {
    ++lost_;
    return;
  }
  TraceEvent& event = events_[index];
  event.kind = span.kind;
  event.thread = spans.thread;
  event.begin_ns = begin_ns;
  event.end_ns = now_ns();
  event.bytes = span.bytes;
  event.number = span.number;
  event.file = span.site.file;
  event.line = span.site.line;
  copy_text(span.name, event.name);
  copy_text(span.group, event.group);
}

std::vector<TraceEvent> TraceRecorder::events() const {
  const auto count = static_cast<std::ptrdiff_t>(std::min(next_.load(), events_.size()));
  return {events_.begin(), events_.begin() + count};
}

std::int64_t TraceRecorder::num_lost() const {
  return lost_;
}

}  // namespace athanor::train
