#include "device/stream.hpp"

#include <chrono>
#include <utility>

namespace athanor::device {

Stream::Stream(StreamPriority /*priority*/) {}

Stream Stream::borrow(StreamHandle handle) noexcept {
  return Stream(handle, false);
}

Stream::~Stream() {}  // nothing to destroy here; where there is CUDA there is

Stream::Stream(Stream&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)), owned_(std::exchange(other.owned_, false)) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(owned_, other.owned_);
  return *this;
}

void Stream::wait_for(const Event& /*event*/) const {}

void Stream::wait_for(const Stream& /*other*/) const {}

bool Stream::idle() const {
  return true;
}

void Stream::synchronize() const {}

Event::Event(EventTiming /*timing*/) {}

Event::~Event() {}

Event::Event(Event&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)), recorded_ms_(other.recorded_ms_) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(recorded_ms_, other.recorded_ms_);
  return *this;
}

void Event::record(const Stream& /*stream*/) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  recorded_ms_ = std::chrono::duration<double, std::milli>(now).count();
}

bool Event::done() const {
  return true;
}

void Event::synchronize() const {}

double Event::milliseconds_since(const Event& start) const {
  return recorded_ms_ - start.recorded_ms_;
}

StreamHandle current_stream() {
  return nullptr;
}

StreamScope::StreamScope(const Stream& /*stream*/) {}

StreamScope::~StreamScope() {}

}  // namespace athanor::device
