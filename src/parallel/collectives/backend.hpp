// The interface behind the collectives: MpiBackend for CPU tensors, NcclBackend (nccl/nccl_backend.hpp) for
// those of a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <ATen/core/Tensor.h>

namespace athanor::parallel {

enum class ReduceOp { sum, max, min };

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

/// An exchange that a backend has started. Destroying it gives up what has not ended.
class StartedExchange {
 public:
  virtual ~StartedExchange() = default;
  /// Moves it along without waiting; whether all has arrived and left.
  virtual bool test() = 0;
  /// Returns when all has arrived and left, of device memory: for what the current stream does from now on.
  virtual void wait() = 0;
  /// Ends it without the other ranks as far as that is possible. False: the buffers may still be written to.
  virtual bool give_up() noexcept = 0;
};

/// Raw data movement between the ranks of one group. Every method is collective over the group. Buffers are
/// contiguous, on one device, and allocated by the caller. The functions in collectives/*.hpp check
/// arguments, count bytes and call these. Results may be read when a method returns: by the host when they
/// lie in host memory, by the current stream when they lie on a device.
class CollectiveBackend {
 public:
  virtual ~CollectiveBackend() = default;
  /// Sends send[r] to rank r and fills receive[r] from rank r, for every other rank; the entries of this rank
  /// are not looked at. Both sides know the sizes; empty parts send nothing. All parts lie on `device`.
  virtual void exchange(std::span<const MutableBytes> receive, std::span<const Bytes> send,
                        at::Device device) = 0;
  /// Starts what exchange() does and returns; buffers stay until it has ended. A rank's started exchanges
  /// match those of the others in the order in which each rank starts them, and never blocking operations.
  virtual std::unique_ptr<StartedExchange> start_exchange(std::span<const MutableBytes> receive,
                                                          std::span<const Bytes> send, at::Device device) = 0;
  /// output = the ranks' inputs one after another; rows[r] rows come from rank r. Any dtype.
  virtual void all_gather_v(at::Tensor& output, const at::Tensor& input,
                            std::span<const std::int64_t> rows) = 0;
  /// Elementwise over integers (int32, int64, uint8, bool) in place.
  virtual void all_reduce_integers(at::Tensor& tensor, ReduceOp op) = 0;
  virtual void broadcast(at::Tensor& tensor, int root) = 0;
  /// Of the hosts.
  virtual void barrier() = 0;

  /// Whether sums of floats like these are made by the backend, by the two methods below, and not by exchange
  /// and addition in rank order.
  virtual bool sums_floats(const at::Tensor& /*tensor*/) const { return false; }
  /// Elementwise sum in place.
  virtual void all_reduce_floats(at::Tensor& tensor);
  /// output = this rank's block of the sum of `input`, which has as many equal blocks as there are ranks.
  virtual void reduce_scatter_floats(at::Tensor& output, const at::Tensor& input);
};

}  // namespace athanor::parallel
