// Streams and events: what runs after what, without ever waiting for a whole device.
//
// In a build without CUDA work is done when the call that starts it returns: streams and events are always
// idle, so callers need no branches.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"

namespace athanor::device {

class Event;

enum class StreamPriority { normal, high };

/// A queue of work on the current device. Move-only; an owned stream is destroyed once its work is done.
class Stream {
 public:
  /// A new stream that does not wait for the default stream. Collectives take `high`, so that they are not
  /// stuck behind the kernels that they overlap.
  explicit Stream(StreamPriority priority = StreamPriority::normal);
  /// A stream of somebody else's, who keeps it alive: the tensors' current stream, for instance.
  static Stream borrow(StreamHandle handle) noexcept;
  ~Stream();
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;

  StreamHandle handle() const noexcept { return handle_; }

  /// Lets work that is queued from now on wait for `event`; returns at once.
  void wait_for(const Event& event) const;
  /// Lets work that is queued from now on wait for all that `other` has queued so far; returns at once.
  void wait_for(const Stream& other) const;
  /// Whether all queued work is done. Throws DeviceError if some of it failed.
  bool idle() const;
  /// Waits, on the host, for this stream only.
  void synchronize() const;

 private:
  Stream(StreamHandle handle, bool owned) noexcept : handle_(handle), owned_(owned) {}
  StreamHandle handle_ = nullptr;
  bool owned_ = false;
};

enum class EventTiming { off, on };

/// A point in a stream. Move-only. Timing costs a little; an event without it cannot measure.
class Event {
 public:
  explicit Event(EventTiming timing = EventTiming::off);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  EventHandle handle() const noexcept { return handle_; }

  /// Marks the end of what `stream` has queued so far; forgets an earlier mark.
  void record(const Stream& stream);
  /// Whether the marked work is done; true for an event that was never recorded. Throws DeviceError if it
  /// failed.
  bool done() const;
  /// Waits, on the host, for the marked work only.
  void synchronize() const;
  /// Milliseconds of the device from `start` to this; both recorded with timing and done.
  double milliseconds_since(const Event& start) const;

 private:
  EventHandle handle_ = nullptr;
  double recorded_ms_ = 0.0;  // host clock, where there is no device
};

/// The stream on which tensors of this thread's current device are computed; null without CUDA.
StreamHandle current_stream();

/// Makes a stream the tensors' current one of this thread until the end of the scope.
class StreamScope {
 public:
  explicit StreamScope(const Stream& stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  std::int64_t previous_ = 0;  // LibTorch's number of it
};

}  // namespace athanor::device
