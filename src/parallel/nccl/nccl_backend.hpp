// Collectives of a GPU's tensors through NCCL.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "parallel/collectives/backend.hpp"
#include "parallel/collectives/mpi_backend.hpp"
#include "parallel/nccl/event_pool.hpp"
#include "parallel/nccl/nccl_comm.hpp"
#include "parallel/nccl/nccl_runtime.hpp"

namespace athanor::parallel {

/// Each operation runs on the group's own stream: that stream waits for what the current stream was given so
/// far, and the current stream then waits for the operation; the host goes on at once (HostWait::never). So
/// memory of a tensor that is freed after the call may be used again: the allocator reuses it in the order of
/// the current stream.
///
/// The tensor's device chooses: the table's device goes through NCCL, host tensors go through MPI, anything
/// else is an InternalError, and so are buffers of one call on several devices. Barriers are of the hosts, by
/// MPI. Errors and deadlines: NcclComm.
class NcclBackend final : public CollectiveBackend {
 public:
  /// `state` must outlive this. Starts NCCL on the group and connects every pair of ranks, so that later
  /// exchanges start without the other side. Collective.
  NcclBackend(const detail::CommunicatorState& state, std::shared_ptr<NcclRuntime> runtime);
  /// Waits for what is under way unless the group was aborted.
  ~NcclBackend() override;

  void exchange(std::span<const MutableBytes> receive, std::span<const Bytes> send,
                at::Device device) override;
  std::unique_ptr<StartedExchange> start_exchange(std::span<const MutableBytes> receive,
                                                  std::span<const Bytes> send, at::Device device) override;
  void all_gather_v(at::Tensor& output, const at::Tensor& input, std::span<const std::int64_t> rows) override;
  void all_reduce_integers(at::Tensor& tensor, ReduceOp op) override;
  void broadcast(at::Tensor& tensor, int root) override;
  void barrier() override;
  bool sums_floats(const at::Tensor& tensor) const override;
  void all_reduce_floats(at::Tensor& tensor) override;
  void reduce_scatter_floats(at::Tensor& output, const at::Tensor& input) override;

 private:
  class Started;
  class OwnedStream {
   public:
    explicit OwnedStream(NcclApi& api) : api_(api), stream_(api.create_stream()) {}
    ~OwnedStream() { api_.destroy_stream(stream_); }
    OwnedStream(const OwnedStream&) = delete;
    OwnedStream& operator=(const OwnedStream&) = delete;
    device::StreamHandle get() const { return stream_; }

   private:
    NcclApi& api_;
    device::StreamHandle stream_;
  };
  struct UnderWay {
    NcclOperation operation;
    device::EventHandle ended;
  };

  bool is_ours(at::Device device, std::string_view operation) const;
  bool is_ours(const at::Tensor& tensor, std::string_view operation) const;
  bool host_waits() const;
  NcclOperation begin(std::string_view name);
  device::EventHandle record_end(const NcclOperation& operation);
  void let_compute_wait(const NcclOperation& operation, device::EventHandle ended);
  void end(const NcclOperation& operation);
  void forget_ended();
  void send_and_receive(const NcclOperation& operation, std::span<const MutableBytes> receive,
                        std::span<const Bytes> send);
  void gather_unequal(const NcclOperation& operation, at::Tensor& output, std::span<const std::int64_t> rows);
  void connect();

  const detail::CommunicatorState& state_;
  std::shared_ptr<NcclRuntime> runtime_;
  NcclApi& api_;
  MpiBackend host_;
  EventPool events_;
  OwnedStream stream_;
  NcclComm comm_;                   // its end waits for what is on the stream
  std::deque<UnderWay> under_way_;  // that the host did not wait for, oldest first
};

}  // namespace athanor::parallel
