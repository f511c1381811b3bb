#include "moe/moe_layer.hpp"

#include <optional>

#include <ATen/ATen.h>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "moe/grouped_experts.hpp"
#include "moe/router.hpp"
#include "moe/token_dispatcher.hpp"
#include "nn/feed_forward.hpp"

namespace athanor::moe {

struct MoeLayer::Parts {
  Parts(const MoeOptions& options, const Shape& shape, const std::string& prefix,
        parallel::ParameterMap& parameters, const parallel::ProcessGrid& process_grid)
      : grid(&process_grid),
        router(options, shape.hidden, shape.init_std, prefix + "router.", parameters, process_grid),
        keep(shape.storage.of(nn::ActivationClass::experts)),
        keep_shared(shape.storage.of(nn::ActivationClass::ffn)),
        dispatcher(options.num_experts, process_grid.comm(parallel::Axis::expert), options.wire, keep,
                   options.dispatch_chunks),
        experts(options, shape.hidden, {shape.init_std, shape.output_init_std, keep}, prefix + "experts.",
                parameters, process_grid) {
    if (options.shared_experts > 0) {
      nn::FeedForwardOptions shared_options;
      shared_options.hidden = shape.hidden;
      shared_options.ffn = options.shared_experts * options.ffn;
      shared_options.init_std = shape.init_std;
      shared_options.output_init_std = shape.output_init_std;
      shared_options.keep = keep_shared;
      shared.emplace(shared_options, prefix + "shared.", parameters, process_grid);
    }
  }

  const parallel::ProcessGrid* grid;
  TopKRouter router;
  nn::Keep keep, keep_shared;
  TokenDispatcher dispatcher;
  GroupedExperts experts;
  std::optional<nn::FeedForward> shared;
};

MoeLayer::MoeLayer(const MoeOptions& options, const Shape& shape, const std::string& prefix,
                   parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid) {
  validate(options, grid.size(parallel::Axis::expert));
  parts_ = std::make_unique<Parts>(options, shape, prefix, parameters, grid);
}
MoeLayer::~MoeLayer() = default;
MoeLayer::MoeLayer(MoeLayer&&) noexcept = default;
MoeLayer& MoeLayer::operator=(MoeLayer&&) noexcept = default;

MoeOutput MoeLayer::forward(const at::Tensor& x_BsD, const MoeContext& context) const {
  ATHANOR_CHECK(context.batch != nullptr && x_BsD.dim() == 3,
                "a sparse layer needs x [B, s, D] and its batch");
  const parallel::Communicator& tp = parts_->grid->comm(parallel::Axis::tensor);
  const nn::SequenceSlice slice =
      nn::SequenceSlice::of(context.batch->tokens_BS.size(1), context.batch->real_seq, tp.rank(), tp.size());
  const std::int64_t sequences = x_BsD.size(0);
  const std::int64_t hidden = x_BsD.size(2);
  const bool padded = slice.real_count < slice.count;
  // Padding is neither routed nor counted.
  const at::Tensor x_TD =
      (padded ? x_BsD.narrow(1, 0, slice.real_count) : x_BsD).reshape({sequences * slice.real_count, hidden});
  // The router and shared experts keep the same input, once: in FP8 where both may.
  const bool is_kept_twice = parts_->shared.has_value() && tp.size() == 1 && !padded;
  const nn::Keep keep = is_kept_twice && !parts_->keep_shared ? std::nullopt : parts_->keep;
  const nn::StoredActivation kept_x = nn::store_activation(x_TD, nn::keep_if_backward(keep));
  const Routing routing = [&] {
    const base::ScopedSpan span(base::SpanKind::compute, "route");
    return parts_->router.forward(x_TD, context, kept_x);
  }();
  const auto plan = [&] {
    const base::ScopedSpan span(base::SpanKind::compute, "plan");
    return parts_->dispatcher.plan(routing);
  }();
  const at::Tensor rows = parts_->experts.forward(parts_->dispatcher.dispatch(x_TD, plan), plan);
  at::Tensor y =
      parts_->dispatcher.combine(rows, routing.gates_TK, plan).view({sequences, slice.real_count, hidden});
  if (padded) {
    y = at::constant_pad_nd(y, {0, 0, 0, slice.count - slice.real_count});
  }
  if (parts_->shared.has_value()) {
    const base::ScopedSpan span(base::SpanKind::compute, "shared experts");
    nn::StoredActivation kept;
    if (is_kept_twice) {
      kept = kept_x.is_fp8() ? kept_x.view(x_BsD.sizes()) : nn::StoredActivation{x_BsD, at::Tensor()};
    }
    y = y + parts_->shared->forward(x_BsD, kept);
  }
  return {y, routing.aux};
}

}  // namespace athanor::moe
