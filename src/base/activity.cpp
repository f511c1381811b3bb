#include "base/activity.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <vector>

namespace athanor::base {
namespace {

struct Observers {
  std::shared_mutex mutex;
  std::vector<SpanObserver*> list;
  std::atomic<bool> any = false;  // so that unwatched spans take no lock
};

Observers& observers() {
  static Observers instance;
  return instance;
}

template <typename Call>
void for_each_observer(const Call& call) {
  Observers& all = observers();
  if (!all.any.load(std::memory_order_acquire)) {
    return;
  }
  const std::shared_lock lock(all.mutex);
  for (SpanObserver* observer : all.list) {
    call(*observer);
  }
}

}  // namespace

SpanObservation::SpanObservation(SpanObserver& observer) : observer_(observer) {
  Observers& all = observers();
  const std::unique_lock lock(all.mutex);
  all.list.push_back(&observer_);
  all.any.store(true, std::memory_order_release);
}

SpanObservation::~SpanObservation() {
  Observers& all = observers();
  const std::unique_lock lock(all.mutex);
  all.list.erase(std::find(all.list.begin(), all.list.end(), &observer_));
  all.any.store(!all.list.empty(), std::memory_order_release);
}

ScopedSpan::ScopedSpan(const Span& span) : span_(span) {
  for_each_observer([this](SpanObserver& observer) { observer.begin(span_); });
}

ScopedSpan::~ScopedSpan() {
  for_each_observer([this](SpanObserver& observer) { observer.end(span_); });
}

}  // namespace athanor::base
