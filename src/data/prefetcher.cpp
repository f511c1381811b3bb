#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "base/activity.hpp"
#include "data/sampler.hpp"

namespace athanor::data {

struct Prefetcher::State {
  State(const BatchSampler& sampler_in, const DataCursor& start, int depth_in)
      : sampler(sampler_in),
        depth(static_cast<std::size_t>(std::max(1, depth_in))),
        taken(start),
        unread(start) {}

  void run();

  const BatchSampler sampler;
  const std::size_t depth;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::vector<Batch>> ready;
  DataCursor taken;   // of the step that take() returns next
  DataCursor unread;  // of the step that the thread reads next; only the thread touches it
  std::exception_ptr error;
  bool stop = false;
  std::thread thread;
};

void Prefetcher::State::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return stop || ready.size() < depth; });
      if (stop) {
        return;
      }
    }
    std::vector<Batch> step;
    std::exception_ptr failure;
    try {
      const base::ScopedSpan span(base::SpanKind::io, "read batch");
      step = sampler.read_step(unread);
      unread = sampler.advance(unread);
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    if (failure) {
      error = failure;
    } else {
      ready.push_back(std::move(step));
    }
    changed.notify_all();
    if (failure) {
      return;
    }
  }
}

Prefetcher::Prefetcher(const BatchSampler& sampler, const DataCursor& start, int depth)
    : state_(std::make_unique<State>(sampler, start, depth)) {
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->changed.notify_all();
  }
  state_->thread.join();
}

std::vector<Batch> Prefetcher::take() {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return !state_->ready.empty() || state_->error; });
  // Steps read before the error are still good.
  if (state_->ready.empty()) {
    std::rethrow_exception(state_->error);
  }
  std::vector<Batch> step = std::move(state_->ready.front());
  state_->ready.pop_front();
  state_->taken = state_->sampler.advance(state_->taken);
  state_->changed.notify_all();
  return step;
}

DataCursor Prefetcher::cursor() const {
  const std::lock_guard lock(state_->mutex);
  return state_->taken;
}

}  // namespace athanor::data
