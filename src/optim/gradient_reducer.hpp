// Gradients of one flat storage and their sum over the ranks that hold the same parameters.
#pragma once

#include <cstddef>
#include <memory>

#include <ATen/core/Tensor.h>

#include "optim/bucket.hpp"
#include "optim/optim_options.hpp"
#include "parallel/collectives/pending_exchange.hpp"
#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::optim {

namespace detail {
class StoredGradientRecords;
class WireParts;
}  // namespace detail

/// A bucket that GradientReducer::start() sent on its way; move-only. Holds the buffers of its exchange.
class StartedBucket {
 public:
  StartedBucket();
  ~StartedBucket();
  StartedBucket(StartedBucket&&) noexcept;
  StartedBucket& operator=(StartedBucket&&) noexcept;
  StartedBucket(const StartedBucket&) = delete;
  StartedBucket& operator=(const StartedBucket&) = delete;

  /// Moves it along without waiting; whether all parts are here.
  bool test();
  /// Waits for the parts and writes their sum to the shard; once.
  void finish();

 private:
  friend class GradientReducer;
  std::unique_ptr<detail::WireParts> parts_;
  parallel::PendingExchange exchange_;
  at::Tensor sum_;
};

/// Owns the flat gradient storage of a group (accumulation type, padding zero for good) and this rank's shard
/// of the sum. Sums are made in rank order elementwise, so their bits do not depend on the buckets. A group
/// of one neither communicates, rounds nor copies: its shard is the storage.
///
/// With a bf16 or fp8 wire every rank's contribution, its own too, is rounded once on its way to the owner
/// and the sum is made in f32; nothing is ever added in the wire's format, so the relative error does not
/// grow with the number of ranks. Blocks of fp8 are those of the layout: none crosses a tensor or a shard. A
/// block with a NaN or an infinity arrives as NaN. What fp8 loses is counted in the communicator's traffic
/// counters.
///
/// Gradients that wire.stored names have no flat storage: they lie in FP8 as they travel, in stored(), and in
/// a group of one as they are read for the update.
class GradientReducer {
 public:
  /// `layout` and `comm` (of layout.group_size() ranks) must outlive this. Bytes count as `purpose`. Another
  /// wire than full is for accumulation in f32.
  GradientReducer(const FlatLayout& layout, const parallel::Communicator& comm,
                  const at::TensorOptions& accumulation, parallel::Traffic purpose,
                  const GradientWire& wire = {});

  /// The whole storage, [layout.total()], which gradient accumulators write to; undefined with stored().
  const at::Tensor& flat() const { return flat_; }
  /// Where gradients are rounded to as they are made; null where they are not.
  const std::shared_ptr<detail::StoredGradientRecords>& stored() const { return stored_; }
  /// This rank's part of the sums, [layout.shard_total()]; valid after reduce_scatter(). Undefined with
  /// stored() in a group of one.
  const at::Tensor& shard() const { return shard_; }
  /// Bucket by bucket, sums over the group into the owners' shards. Collective over the group.
  /// `gradient_scale` turns a gradient into one of the mean loss; with error feedback the residual, which is
  /// kept in that unit, is added to the gradients first, and flat() holds afterwards what rounding took.
  void reduce_scatter(double gradient_scale = 1.0);
  /// What reduce_scatter() does for one bucket, up to where it would wait; the same bits whenever each bucket
  /// is started. Its gradients are left alone until finish(). `lane` has the group's ranks and nothing else
  /// on it that blocks; all of them start the buckets in one order. Not in a group of one.
  StartedBucket start(std::size_t bucket, double gradient_scale, const parallel::Communicator& lane);
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
  /// Elements [first, first + count) of every rank's part of a bucket, at `offset` of what is sent.
  struct Piece {
    std::int64_t first = 0;
    std::int64_t offset = 0;
    std::int64_t count = 0;
  };
  void reduce_rounded(double gradient_scale);
  void round_piece(detail::WireParts& parts, const FlatLayout::Range& bucket, const Piece& piece,
                   double gradient_scale, const at::Tensor& scratch);

  const FlatLayout* layout_;
  const parallel::Communicator* comm_;
  parallel::Traffic purpose_;
  GradientWire wire_;
  std::shared_ptr<detail::StoredGradientRecords> stored_;
  at::Tensor flat_;
  at::Tensor shard_;
  at::Tensor residual_;
};

}  // namespace athanor::optim
