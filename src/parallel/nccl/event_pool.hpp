// Events of one group, used again and again: making one costs a driver call.
#pragma once

#include <vector>

#include "parallel/nccl/nccl_api.hpp"

namespace athanor::parallel {

/// An event may be given back while a stream still waits for it: recording it again does not change what was
/// waited for before.
class EventPool {
 public:
  explicit EventPool(NcclApi& api) : api_(api) {}
  /// Destroys the events that were given back; a user outlives none of them.
  ~EventPool() {
    for (const device::EventHandle event : free_) {
      api_.destroy_event(event);
    }
  }
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  device::EventHandle take() {
    if (free_.empty()) {
      return api_.create_event();
    }
    const device::EventHandle event = free_.back();
    free_.pop_back();
    return event;
  }
  void give_back(device::EventHandle event) { free_.push_back(event); }

 private:
  NcclApi& api_;
  std::vector<device::EventHandle> free_;
};

}  // namespace athanor::parallel
