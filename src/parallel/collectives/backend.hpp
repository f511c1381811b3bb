// The interface behind the collectives: MpiBackend for CPU tensors; NCCL comes behind the same.
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

namespace athanor::parallel {

enum class ReduceOp { sum, max, min };

/// Raw data movement between the ranks of one group. Every method is collective over the group. Buffers are
/// contiguous tensors allocated by the caller; counts are rows of dim 0 by rank. The functions in
/// collectives/*.hpp check arguments, count bytes and call these.
class CollectiveBackend {
 public:
  virtual ~CollectiveBackend() = default;
  /// Rows of `input` for rank r: send_rows[r], in rank order; `output` likewise with receive_rows. Any dtype.
  virtual void all_to_all_v(at::Tensor& output, const at::Tensor& input, std::span<const std::int64_t> receive_rows,
                            std::span<const std::int64_t> send_rows) = 0;
  /// output = the ranks' inputs one after another; rows[r] rows come from rank r. Any dtype.
  virtual void all_gather_v(at::Tensor& output, const at::Tensor& input, std::span<const std::int64_t> rows) = 0;
  /// Elementwise over integers (int32, int64, uint8, bool) in place.
  virtual void all_reduce_integers(at::Tensor& tensor, ReduceOp op) = 0;
  virtual void broadcast(at::Tensor& tensor, int root) = 0;
  virtual void barrier() = 0;
};

}  // namespace athanor::parallel
