// The parameters of one reduction group with equal decay and kind: flat storages, optimizer state, and the
// four parts of an update. ShardedOptimizer runs these over all groups of a rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "optim/bucket.hpp"
#include "optim/grad_norm.hpp"
#include "optim/gradient_reducer.hpp"
#include "optim/sharded_optimizer.hpp"
#include "parallel/collectives/pending_exchange.hpp"
#include "parallel/communicator.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/reduction_groups.hpp"

namespace athanor::optim::detail {

/// What AdamW needs beside the gradients; the same for all groups of an update.
struct AdamwStep {
  const OptimOptions& options;
  double lr = 0.0;
  double gradient_scale = 1.0;  ///< 1/N, over the loss scale, times the clipping factor
  std::int64_t update = 1;      ///< count from 1, for the bias correction
};

class FlatGroup {
 public:
  /// Copies the parameters' values into flat storage, makes them views of it (still the same autograd leaves)
  /// and attaches their accumulators. All parameters share decay group and kind. `lane` is a duplicate of
  /// `comm` for what goes on in the background (null: nothing does); both must outlive this.
  FlatGroup(std::vector<std::shared_ptr<parallel::Parameter>> parameters, const parallel::Communicator& comm,
            const parallel::Communicator& lane, const OptimOptions& options, const GradientWire& wire);
  /// Waits a while for gathers under way, and gives them up when an error unwinds the stack.
  ~FlatGroup();
  FlatGroup(const FlatGroup&) = delete;
  FlatGroup& operator=(const FlatGroup&) = delete;

  /// Forgets the gradients.
  void reset_gradients();
  /// Finishes the accumulators and sums over the group. Collective over the group.
  void reduce_gradients(double gradient_scale);
  /// reduce_gradients() in the background: sends one bucket on its way, closing the accumulators of all its
  /// parameters. All members start the buckets in one order.
  StartedBucket start_reduction(std::size_t bucket, double gradient_scale);
  /// Finishes the accumulators that no started bucket has closed.
  void finish_gradients();
  /// Ends a step's reduction (GradientReducer::finish_step).
  void finish_reduction(bool skipped, double gradient_scale) {
    reducer_.finish_step(skipped, gradient_scale);
  }
  /// Adds the squares of the summed gradients of the elements this rank owns: every rank its own part, also
  /// when zero = 0 keeps the state of all of them.
  void add_squares(SquareSum& sum) const;
  /// With zero = 0, brings the sums of the others' parts here; otherwise nothing. Collective over the group.
  void gather_gradients();
  void update(const AdamwStep& step);
  /// With zero = 1, brings the others' updated parameters here; otherwise nothing. Collective over the group.
  void gather_parameters();
  /// gather_parameters() in the background: until a bucket is here, reading its parameters waits for it
  /// (Parameter::before_read). All members start the buckets in one order. With zero = 0 nothing.
  void start_gather(std::size_t bucket);
  /// Waits for the gathers under way.
  void finish_gathers();

  const std::vector<std::shared_ptr<parallel::Parameter>>& parameters() const { return parameters_; }
  /// Buckets that travel; none in a group of one.
  std::size_t num_buckets() const { return comm_->size() == 1 ? 0 : layout_.buckets().size(); }
  /// Indices of the parameters with elements in a bucket, ascending; a bucket may be all padding.
  std::vector<std::size_t> parameters_in(std::size_t bucket) const;
  /// Writes master weights to the parameters that this rank updates.
  void write_parameters_from_master();
  /// Entries for the ranges that this rank keeps state for.
  void append_owned_state(std::vector<OwnedState>& states) const { append_state(held_, states); }
  /// Entries that together with the other members' cover each element once, whatever `zero` is.
  void append_written_state(std::vector<OwnedState>& states) const {
    append_state(layout_.owned_by(comm_->rank()), states);
  }
  /// Error feedback: one entry a parameter that has elements here; none without it.
  void append_residuals(std::vector<ResidualState>& states) const;

 private:
  void attach_gradient(std::size_t index);
  void update_range(const AdamwStep& step, const FlatLayout::Range& range, const at::Tensor& gradients);
  bool is_sharded() const { return zero_ && comm_->size() > 1; }
  void wait_for_parameter(std::size_t parameter);
  void wait_for_bucket(std::size_t bucket);
  at::Tensor master_of(const FlatLayout::Range& range) const;
  void append_state(const std::vector<FlatLayout::Range>& ranges, std::vector<OwnedState>& states) const;

  const parallel::Communicator* comm_;
  const parallel::Communicator* lane_;
  std::vector<std::shared_ptr<parallel::Parameter>> parameters_;
  bool zero_ = true;
  FlatLayout layout_;
  GradientReducer reducer_;
  std::vector<FlatLayout::Range> held_;  // what this rank keeps state for and updates
  at::Tensor values_;                    // [total], compute type; the parameters are views of it
  at::Tensor master_;                    // [held], accumulation type; undefined when values_ have that type
  at::Tensor exp_avg_;                   // [held]
  at::Tensor exp_avg_sq_;                // [held]
  std::vector<parallel::PendingExchange> gathers_;  // by bucket
  std::size_t num_gathers_ = 0;                     // under way
};

/// The role's parameters on this rank in flat groups, in one order on all ranks. The communicators are those
/// of `groups` and `lanes` (one each), which must outlive the result.
std::vector<std::unique_ptr<FlatGroup>> build_flat_groups(const std::vector<parallel::ReductionGroup>& groups,
                                                          const std::vector<parallel::Communicator>& lanes,
                                                          const OptimOptions& options,
                                                          const GradientWire& wire);

}  // namespace athanor::optim::detail
