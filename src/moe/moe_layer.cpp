#include "moe/moe_layer.hpp"

#include <optional>

#include <ATen/ATen.h>

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
        dispatcher(options.num_experts, process_grid.comm(parallel::Axis::expert), options.wire),
        experts(options, shape.hidden, {shape.init_std, shape.output_init_std}, prefix + "experts.",
                parameters, process_grid) {
    if (options.shared_experts > 0) {
      nn::FeedForwardOptions shared_options;
      shared_options.hidden = shape.hidden;
      shared_options.ffn = options.shared_experts * options.ffn;
      shared_options.init_std = shape.init_std;
      shared_options.output_init_std = shape.output_init_std;
      shared.emplace(shared_options, prefix + "shared.", parameters, process_grid);
    }
  }

  const parallel::ProcessGrid* grid;
  TopKRouter router;
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
  const Routing routing = parts_->router.forward(x_TD, context);
  const auto plan = parts_->dispatcher.plan(routing);
  const at::Tensor rows = parts_->experts.forward(parts_->dispatcher.dispatch(x_TD, plan), plan);
  at::Tensor y =
      parts_->dispatcher.combine(rows, routing.gates_TK, plan).view({sequences, slice.real_count, hidden});
  if (padded) {
    y = at::constant_pad_nd(y, {0, 0, 0, slice.count - slice.real_count});
  }
  if (parts_->shared.has_value()) {
    y = y + parts_->shared->forward(x_BsD);
  }
  return {y, routing.aux};
}

}  // namespace athanor::moe
