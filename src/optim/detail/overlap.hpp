// Reduction of gradients while backward runs: which bucket goes when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "optim/detail/flat_group.hpp"
#include "optim/gradient_reducer.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::optim::detail {

/// One bucket of one group.
struct BucketOfGroup {
  std::size_t group = 0;
  std::size_t bucket = 0;
};

/// All buckets in the order in which backward makes their gradients final, when it finishes parameters in the
/// reverse of the order in which the model made them: a bucket is final with its first parameter. It follows
/// from the layouts, so all members of a group have its buckets in one order, and ranks that share several
/// groups have those of all in one order.
std::vector<BucketOfGroup> backward_order(const std::vector<std::unique_ptr<FlatGroup>>& groups,
                                          const parallel::ParameterMap& parameters);

/// Starts buckets strictly in backward_order() as soon as autograd is through with all of their parameters,
/// and waits for none of them while backward runs. Whatever is not final at the end of it (parameters that it
/// never reached, for one) is started then. So the order of messages is the same on all ranks, however their
/// autograd engines order the work.
class OverlappedReduction {
 public:
  /// `groups` must outlive this.
  OverlappedReduction(const std::vector<std::unique_ptr<FlatGroup>>& groups,
                      const parallel::ParameterMap& parameters);
  ~OverlappedReduction();
  OverlappedReduction(const OverlappedReduction&) = delete;
  OverlappedReduction& operator=(const OverlappedReduction&) = delete;

  /// The next backward pass is the last one of the step. `gradient_scale` as in ShardedOptimizer::step().
  void begin(double gradient_scale);
  /// Between begin() and finish().
  bool is_under_way() const { return is_under_way_; }
  double gradient_scale() const { return gradient_scale_; }
  /// Starts what is left and waits for all: the groups' shards hold the sums. Collective over the role.
  void finish();

 private:
  struct Watched;
  struct Pending {
    BucketOfGroup which;
    std::vector<std::size_t> parameters;  // of watched_ that it waits for
    bool ends_with_backward = false;      // has a parameter whose last gradient cannot be seen
  };
  void watch(const parallel::Parameter& parameter);
  void note_final(std::size_t parameter);
  bool is_final(const Pending& bucket) const;
  void advance();
  void start_next();
  void finish_oldest();

  const std::vector<std::unique_ptr<FlatGroup>>* groups_;
  std::vector<std::unique_ptr<Watched>> watched_;
  std::vector<Pending> order_;
  std::deque<StartedBucket> started_;
  std::size_t next_ = 0;  // of order_
  double gradient_scale_ = 1.0;
  bool is_under_way_ = false;
};

}  // namespace athanor::optim::detail
