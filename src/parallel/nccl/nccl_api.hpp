// The one table through which everything of NCCL, of streams and of events is called: the GPU's libraries
// behind it in the CUDA build (nccl_library.hpp), a test double over MPI in the tests.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include <c10/core/Device.h>

#include "device/stream_handle.hpp"

struct ncclComm;

namespace athanor::parallel {

/// ncclComm_t.
using NcclCommHandle = ::ncclComm*;
/// ncclUniqueId: what the ranks of a new communicator find each other by.
using NcclUniqueId = std::array<std::byte, 128>;

/// ncclResult_t, in its order.
enum class NcclCode {
  success,
  unhandled_device_error,
  system_error,
  internal_error,
  invalid_argument,
  invalid_usage,
  remote_error,
  in_progress,
};

/// Element types that we hand over; bytes of any other go as uint8.
enum class NcclType { uint8, int32, int64, float32, float64 };
enum class NcclReduction { sum, max, min };

/// Bytes of an element.
constexpr std::size_t size_of(NcclType type) {
  switch (type) {
    case NcclType::uint8:
      return 1;
    case NcclType::int32:
    case NcclType::float32:
      return 4;
    case NcclType::int64:
    case NcclType::float64:
      return 8;
  }
  return 1;
}

/// Names, arguments and meaning are those of the NCCL and CUDA functions: operations are enqueued on a stream
/// and move nothing before. Communicators are non-blocking: calls may return in_progress, and state_of()
/// tells how they went. Stream and event functions throw CommError on failure. Counts are of elements.
class NcclApi {
 public:
  virtual ~NcclApi() = default;

  /// 22809 for 2.28.9.
  virtual int version() const = 0;
  /// What must be equal on all ranks, for messages: version and what is pinned by the environment.
  virtual std::string description() const = 0;
  /// Where the tensors lie that it can move: a GPU, or the host with the test double.
  virtual c10::Device device() const = 0;
  virtual std::string error_text(NcclCode code, NcclCommHandle comm) const = 0;

  virtual NcclCode get_unique_id(NcclUniqueId& id) = 0;
  virtual NcclCode comm_init_rank(NcclCommHandle& comm, int size, const NcclUniqueId& id, int rank) = 0;
  /// ncclCommGetAsyncError.
  virtual NcclCode state_of(NcclCommHandle comm) = 0;
  virtual NcclCode comm_finalize(NcclCommHandle comm) = 0;
  virtual NcclCode comm_destroy(NcclCommHandle comm) = 0;
  virtual NcclCode comm_abort(NcclCommHandle comm) = 0;

  virtual NcclCode group_start() = 0;
  virtual NcclCode group_end() = 0;
  virtual NcclCode send(const void* buffer, std::size_t count, NcclType type, int peer, NcclCommHandle comm,
                        device::StreamHandle stream) = 0;
  virtual NcclCode receive(void* buffer, std::size_t count, NcclType type, int peer, NcclCommHandle comm,
                           device::StreamHandle stream) = 0;
  virtual NcclCode all_gather(const void* input, void* output, std::size_t count_of_rank, NcclType type,
                              NcclCommHandle comm, device::StreamHandle stream) = 0;
  virtual NcclCode all_reduce(const void* input, void* output, std::size_t count, NcclType type,
                              NcclReduction op, NcclCommHandle comm, device::StreamHandle stream) = 0;
  virtual NcclCode reduce_scatter(const void* input, void* output, std::size_t count_of_rank, NcclType type,
                                  NcclReduction op, NcclCommHandle comm, device::StreamHandle stream) = 0;
  virtual NcclCode broadcast(const void* input, void* output, std::size_t count, NcclType type, int root,
                             NcclCommHandle comm, device::StreamHandle stream) = 0;

  /// The stream that this thread's tensor operations are enqueued on.
  virtual device::StreamHandle compute_stream() = 0;
  virtual device::StreamHandle create_stream() = 0;
  virtual void destroy_stream(device::StreamHandle stream) noexcept = 0;
  virtual device::EventHandle create_event() = 0;
  virtual void destroy_event(device::EventHandle event) noexcept = 0;
  /// The event then stands for all that is enqueued on `stream` so far.
  virtual void record_event(device::EventHandle event, device::StreamHandle stream) = 0;
  /// What is enqueued on `stream` from now on runs after the event; the host does not wait.
  virtual void wait_event(device::StreamHandle stream, device::EventHandle event) = 0;
  /// Whether the event has passed; without waiting.
  virtual bool query_event(device::EventHandle event) = 0;
};

}  // namespace athanor::parallel
