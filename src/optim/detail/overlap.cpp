#include "optim/detail/overlap.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <unordered_map>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace athanor::optim::detail {
namespace {

// Buckets whose parts are under way at a time: bounds the buffers for what the other ranks send.
constexpr std::size_t max_started = 4;

using Positions = std::unordered_map<const parallel::Parameter*, std::size_t>;

// Called by autograd when all functions of a backward pass that use a leaf have run, whether they returned a
// gradient or added it to its accumulator themselves.
class FinalHook final : public torch::autograd::FunctionPostHook {
 public:
  explicit FinalHook(std::function<void()> call) : call_(std::move(call)) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list& /*inputs*/) override {
    call_();
    return outputs;
  }

 private:
  std::function<void()> call_;
};

}  // namespace

std::vector<BucketOfGroup> backward_order(const std::vector<std::unique_ptr<FlatGroup>>& groups,
                                          const parallel::ParameterMap& parameters) {
  Positions positions;
  for (const auto& parameter : parameters.all()) {
    positions.emplace(parameter.get(), positions.size());
  }
  std::vector<std::pair<std::size_t, BucketOfGroup>> buckets;  // and the position of the first parameter
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (std::size_t b = 0; b < groups[g]->num_buckets(); ++b) {
      std::size_t first = std::numeric_limits<std::size_t>::max();  // padding is final at once
      for (const std::size_t parameter : groups[g]->parameters_in(b)) {
        first = std::min(first, positions.at(groups[g]->parameters()[parameter].get()));
      }
      buckets.push_back({first, {g, b}});
    }
  }
  std::stable_sort(buckets.begin(), buckets.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second.bucket > b.second.bucket;
  });
  std::vector<BucketOfGroup> order;
  for (const auto& [position, bucket] : buckets) {
    order.push_back(bucket);
  }
  return order;
}

// A parameter and the node of autograd that ends its part of a backward pass.
struct OverlappedReduction::Watched {
  c10::intrusive_ptr<torch::autograd::Node> node;
  std::uintptr_t hook = 0;
  bool is_final = false;

  Watched(const at::Tensor& leaf, std::function<void()> call)
      : node(torch::autograd::impl::grad_accumulator(leaf)),
        hook(node->add_post_hook(std::make_unique<FinalHook>(std::move(call)))) {}
  ~Watched() { node->del_post_hook(hook); }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;
};

OverlappedReduction::OverlappedReduction(const std::vector<std::unique_ptr<FlatGroup>>& groups,
                                         const parallel::ParameterMap& parameters)
    : groups_(&groups) {
  Positions indices;  // in watched_
  for (const BucketOfGroup& which : backward_order(groups, parameters)) {
    Pending& pending = order_.emplace_back(Pending{which, {}, false});
    const FlatGroup& group = *groups[which.group];
    for (const std::size_t p : group.parameters_in(which.bucket)) {
      const parallel::Parameter& parameter = *group.parameters()[p];
      // Where layers that share it are recomputed, each of them is a backward pass of its own.
      if (parameter.num_layers > 1) {
        pending.ends_with_backward = true;
        continue;
      }
      const auto [entry, is_new] = indices.emplace(&parameter, watched_.size());
      if (is_new) {
        watch(parameter);
      }
      pending.parameters.push_back(entry->second);
    }
  }
}

OverlappedReduction::~OverlappedReduction() = default;

void OverlappedReduction::watch(const parallel::Parameter& parameter) {
  const std::size_t index = watched_.size();
  watched_.push_back(std::make_unique<Watched>(parameter.value, [this, index] { note_final(index); }));
}

void OverlappedReduction::begin(double gradient_scale) {
  for (const auto& watched : watched_) {
    watched->is_final = false;
  }
  next_ = 0;
  gradient_scale_ = gradient_scale;
  is_under_way_ = true;
}

void OverlappedReduction::note_final(std::size_t parameter) {
  if (is_under_way_) {
    watched_[parameter]->is_final = true;
    const at::NoGradGuard no_grad;
    advance();
  }
}

bool OverlappedReduction::is_final(const Pending& bucket) const {
  return !bucket.ends_with_backward &&
         std::all_of(bucket.parameters.begin(), bucket.parameters.end(),
                     [this](std::size_t parameter) { return watched_[parameter]->is_final; });
}

// Testing the oldest moves all of them along: MPI does so in its calls only.
void OverlappedReduction::advance() {
  while (!started_.empty() && started_.front().test()) {
    finish_oldest();
  }
  while (next_ < order_.size() && started_.size() < max_started && is_final(order_[next_])) {
    start_next();
  }
}

void OverlappedReduction::start_next() {
  const BucketOfGroup& which = order_[next_++].which;
  started_.push_back((*groups_)[which.group]->start_reduction(which.bucket, gradient_scale_));
}

void OverlappedReduction::finish_oldest() {
  started_.front().finish();
  started_.pop_front();
}

// A rank that waits here has started all that the others wait for: those before what it waits for.
void OverlappedReduction::finish() {
  while (next_ < order_.size()) {
    if (started_.size() == max_started) {
      finish_oldest();
    }
    start_next();
  }
  while (!started_.empty()) {
    finish_oldest();
  }
  for (const auto& group : *groups_) {
    group->finish_gradients();
  }
  is_under_way_ = false;
}

}  // namespace athanor::optim::detail
