#include "device/stream.hpp"

#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <utility>

#include "device/cuda/check.hpp"

namespace athanor::device {
namespace {

StreamHandle make_stream(StreamPriority priority) {
  int least = 0;
  int greatest = 0;
  ATHANOR_CUDA_CALL(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  cudaStream_t stream = nullptr;
  ATHANOR_CUDA_CALL(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                                 priority == StreamPriority::high ? greatest : least));
  return stream;
}

// Success, or not ready; anything else is an error of the work itself.
bool is_done(cudaError_t status, const char* call) {
  if (status == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  check_cuda(status, call, __FILE__, __LINE__);
  return true;
}

}  // namespace

Stream::Stream(StreamPriority priority) : Stream(make_stream(priority), true) {}

Stream Stream::borrow(StreamHandle handle) noexcept {
  return Stream(handle, false);
}

Stream::~Stream() {
  if (owned_) {
    ATHANOR_CUDA_WARN(
        cudaStreamDestroy(handle_));  // returns at once; the driver frees it when its work is done
  }
}

Stream::Stream(Stream&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)), owned_(std::exchange(other.owned_, false)) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(owned_, other.owned_);
  return *this;
}

void Stream::wait_for(const Event& event) const {
  ATHANOR_CUDA_CALL(cudaStreamWaitEvent(handle_, event.handle(), cudaEventWaitDefault));
}

void Stream::wait_for(const Stream& other) const {
  if (other.handle_ != handle_) {
    Event reached;
    reached.record(other);
    wait_for(reached);
  }
}

bool Stream::idle() const {
  return is_done(cudaStreamQuery(handle_), "cudaStreamQuery");
}

void Stream::synchronize() const {
  ATHANOR_CUDA_CALL(cudaStreamSynchronize(handle_));
}

Event::Event(EventTiming timing) {
  ATHANOR_CUDA_CALL(cudaEventCreateWithFlags(
      &handle_, timing == EventTiming::on ? cudaEventDefault : cudaEventDisableTiming));
}

Event::~Event() {
  if (handle_ != nullptr) {
    ATHANOR_CUDA_WARN(cudaEventDestroy(handle_));
  }
}

Event::Event(Event&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)), recorded_ms_(other.recorded_ms_) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(recorded_ms_, other.recorded_ms_);
  return *this;
}

void Event::record(const Stream& stream) {
  ATHANOR_CUDA_CALL(cudaEventRecord(handle_, stream.handle()));
}

bool Event::done() const {
  return is_done(cudaEventQuery(handle_), "cudaEventQuery");
}

void Event::synchronize() const {
  ATHANOR_CUDA_CALL(cudaEventSynchronize(handle_));
}

double Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0.0F;
  ATHANOR_CUDA_CALL(cudaEventElapsedTime(&milliseconds, start.handle_, handle_));
  return milliseconds;
}

StreamHandle current_stream() {
  return c10::cuda::getCurrentCUDAStream().stream();
}

StreamScope::StreamScope(const Stream& stream) {
  const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream();
  previous_ = current.id();
  c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromExternal(stream.handle(), current.device_index()));
}

StreamScope::~StreamScope() {
  const c10::Device device = c10::cuda::getCurrentCUDAStream().device();
  c10::cuda::setCurrentCUDAStream(c10::cuda::CUDAStream(c10::Stream(c10::Stream::UNSAFE, device, previous_)));
}

}  // namespace athanor::device
