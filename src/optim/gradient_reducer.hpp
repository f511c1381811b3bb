// Gradients of one flat storage and their sum over the ranks that hold the same parameters.
#pragma once

#include <ATen/core/Tensor.h>

#include "optim/bucket.hpp"
#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::optim {

/// Owns the flat gradient storage of a group (accumulation type, padding zero for good) and this rank's shard
/// of the sum. Sums are made in rank order elementwise, so their bits do not depend on the buckets. A group
/// of one neither communicates nor copies: its shard is the storage.
class GradientReducer {
 public:
  /// `layout` and `comm` (of layout.group_size() ranks) must outlive this. Bytes count as `purpose`.
  GradientReducer(const FlatLayout& layout, const parallel::Communicator& comm, at::ScalarType accumulation,
                  parallel::Traffic purpose);

  /// The whole storage, [layout.total()], which gradient accumulators write to.
  const at::Tensor& flat() const { return flat_; }
  /// This rank's part of the sums, [layout.shard_total()]; valid after reduce_scatter().
  const at::Tensor& shard() const { return shard_; }
  /// Bucket by bucket, sums over the group into the owners' shards. Collective over the group.
  void reduce_scatter();
  /// Writes all ranks' sums to flat(): with reduce_scatter() before, an all-reduce. Collective over the
  /// group.
  void all_gather();

 private:
  const FlatLayout* layout_;
  const parallel::Communicator* comm_;
  parallel::Traffic purpose_;
  at::Tensor flat_;
  at::Tensor shard_;
};

}  // namespace athanor::optim
