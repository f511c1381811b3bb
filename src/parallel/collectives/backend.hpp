// The interface behind the collectives: MpiBackend for CPU tensors; NCCL comes behind the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

namespace athanor::parallel {

enum class ReduceOp { sum, max, min };

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

/// Raw data movement between the ranks of one group. Every method is collective over the group. Buffers are
/// contiguous and allocated by the caller. The functions in collectives/*.hpp check arguments, count bytes
/// and call these.
class CollectiveBackend {
 public:
  virtual ~CollectiveBackend() = default;
  /// Sends send[r] to rank r and fills receive[r] from rank r, for every other rank; the entries of this rank
  /// are not looked at. Both sides know the sizes; empty parts send nothing.
  virtual void exchange(std::span<const MutableBytes> receive, std::span<const Bytes> send) = 0;
  /// output = the ranks' inputs one after another; rows[r] rows come from rank r. Any dtype.
  virtual void all_gather_v(at::Tensor& output, const at::Tensor& input,
                            std::span<const std::int64_t> rows) = 0;
  /// Elementwise over integers (int32, int64, uint8, bool) in place.
  virtual void all_reduce_integers(at::Tensor& tensor, ReduceOp op) = 0;
  virtual void broadcast(at::Tensor& tensor, int root) = 0;
  virtual void barrier() = 0;
};

}  // namespace athanor::parallel
