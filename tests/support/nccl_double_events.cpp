// Streams and events of the NCCL test double.
#include <algorithm>
#include <thread>

#include "support/nccl_double_parts.hpp"

namespace athanor::tests {

device::StreamHandle NcclOverMpi::compute_stream() {
  return reinterpret_cast<device::StreamHandle>(compute_.get());
}

device::StreamHandle NcclOverMpi::create_stream() {
  auto stream = std::make_shared<Stream>();
  const auto handle = reinterpret_cast<device::StreamHandle>(stream.get());
  streams_[handle] = std::move(stream);
  return handle;
}

void NcclOverMpi::destroy_stream(device::StreamHandle handle) noexcept {
  if (is_skipped("destroy_stream")) {
    return;
  }
  const auto found = streams_.find(handle);
  if (found == streams_.end()) {
    note("a stream is destroyed twice");
    return;
  }
  const Stream& stream = *found->second;
  if (stream.last_launch > stream.consumed) {
    note("the compute stream never waits for an operation of a stream that is destroyed");
  }
  streams_.erase(found);
}

device::EventHandle NcclOverMpi::create_event() {
  auto event = std::make_unique<Event>();
  const auto handle = reinterpret_cast<device::EventHandle>(event.get());
  events_[handle] = std::move(event);
  return handle;
}

void NcclOverMpi::destroy_event(device::EventHandle handle) noexcept {
  if (!is_skipped("destroy_event") && events_.erase(handle) == 0) {
    note("an event is destroyed twice");
  }
}

// Non-blocking communicators enqueue on a thread of their own: what is recorded before they have is too
// early.
void NcclOverMpi::expect_settled(const std::string& call) {
  if (depth_ > 0) {
    complain(call + " in an open group");
  }
  for (const auto& [handle, comm] : comms_) {
    if (comm->unsettled > 0) {
      complain(call + " before the operations on a communicator are enqueued");
    }
  }
}

void NcclOverMpi::record_event(device::EventHandle handle, device::StreamHandle stream_handle) {
  if (is_skipped("record_event")) {
    return;
  }
  expect_settled("an event is recorded");
  Event& event = event_of(handle);
  event.stream = stream_of(stream_handle);
  event.position = event.stream->enqueued;
  event.epoch = event.stream == compute_ ? compute_epoch_ : 0;
}

void NcclOverMpi::wait_event(device::StreamHandle stream_handle, device::EventHandle handle) {
  const std::shared_ptr<Stream> stream = stream_of(stream_handle);
  if (is_skipped(stream == compute_ ? "wait_event_compute" : "wait_event")) {
    return;
  }
  expect_settled("an event is waited for");
  const Event& event = event_of(handle);
  if (event.stream == nullptr) {
    return;
  }
  const bool was_idle = stream->items.empty();
  stream->push({.source = event.stream, .position = event.position});
  if (stream != compute_) {
    stream->synced_epoch = std::max(stream->synced_epoch, event.epoch);
    return;
  }
  event.stream->consumed = std::max(event.stream->consumed, event.position);
  ++compute_epoch_;
  if (was_idle) {
    synchronize_compute();  // the tests compute on the host, at once
  }
}

bool NcclOverMpi::query_event(device::EventHandle handle) {
  if (depth_ > 0) {
    complain("an event is asked for in an open group");
  }
  const Event& event = event_of(handle);
  if (event.stream == nullptr) {
    return true;
  }
  progress();
  if (event.stream->ran < event.position) {
    return false;
  }
  deliver(*event.stream, event.position);
  return true;
}

}  // namespace athanor::tests
