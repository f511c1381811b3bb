// Gradients of one flat storage and their sum over the ranks that hold the same parameters.
#pragma once

#include <ATen/core/Tensor.h>

#include "optim/bucket.hpp"
#include "optim/optim_options.hpp"
#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::optim {

/// Owns the flat gradient storage of a group (accumulation type, padding zero for good) and this rank's shard
/// of the sum. Sums are made in rank order elementwise, so their bits do not depend on the buckets. A group
/// of one neither communicates, rounds nor copies: its shard is the storage.
///
/// With a bf16 or fp8 wire every rank's contribution, its own too, is rounded once on its way to the owner
/// and the sum is made in f32; nothing is ever added in the wire's format, so the relative error does not
/// grow with the number of ranks. Blocks of fp8 are those of the layout: none crosses a tensor or a shard. A
/// block with a NaN or an infinity arrives as NaN. What fp8 loses is counted in the communicator's traffic
/// counters.
class GradientReducer {
 public:
  /// `layout` and `comm` (of layout.group_size() ranks) must outlive this. Bytes count as `purpose`. Another
  /// wire than full is for accumulation in f32.
  GradientReducer(const FlatLayout& layout, const parallel::Communicator& comm, at::ScalarType accumulation,
                  parallel::Traffic purpose, const GradientWire& wire = {});

  /// The whole storage, [layout.total()], which gradient accumulators write to.
  const at::Tensor& flat() const { return flat_; }
  /// This rank's part of the sums, [layout.shard_total()]; valid after reduce_scatter().
  const at::Tensor& shard() const { return shard_; }
  /// Bucket by bucket, sums over the group into the owners' shards. Collective over the group.
  /// `gradient_scale` turns a gradient into one of the mean loss; with error feedback the residual, which is
  /// kept in that unit, is added to the gradients first, and flat() holds afterwards what rounding took.
  void reduce_scatter(double gradient_scale = 1.0);
  /// Writes all ranks' sums to flat(): with reduce_scatter() before, an all-reduce. Collective over the
  /// group. Only with the full wire.
  void all_gather();

  /// Error feedback: what rounding took from this rank's gradients so far, [layout.total()], as gradients of
  /// the mean loss; undefined without it and in a group of one.
  const at::Tensor& residual() const { return residual_; }
  /// Ends a step: keeps what reduce_scatter() left for the next one, or, when the step is skipped, what was
  /// kept before.
  void finish_step(bool skipped, double gradient_scale);

 private:
  /// Elements of the largest piece of a rank's part that is exchanged at a time.
  std::int64_t largest_piece() const;
  template <typename Piece>
  void reduce_rounded(Piece& piece, double gradient_scale);

  const FlatLayout* layout_;
  const parallel::Communicator* comm_;
  parallel::Traffic purpose_;
  GradientWire wire_;
  at::Tensor flat_;
  at::Tensor shard_;
  at::Tensor residual_;
};

}  // namespace athanor::optim
