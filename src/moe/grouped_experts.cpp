#include "moe/grouped_experts.hpp"

#include <algorithm>
#include <span>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/core/grad_mode.h>

#include "base/error.hpp"
#include "kernels/activation.hpp"
#include "kernels/grouped_gemm.hpp"
#include "moe/detail/attach_backward.hpp"
#include "nn/weight.hpp"

namespace athanor::moe {
namespace {

/// Consecutive experts that are computed together.
struct Block {
  std::int64_t first_expert = 0;
  std::int64_t num_experts = 0;
  std::int64_t first_row = 0;
  std::int64_t num_rows = 0;
};

/// Blocks of at most `max_rows` rows (or one expert), so that what passes between the products of an expert
/// stays in the second-level cache.
std::vector<Block> blocks_of(const std::vector<std::int64_t>& expert_rows, std::int64_t max_rows) {
  std::vector<Block> blocks;
  std::int64_t row = 0;
  for (std::size_t expert = 0; expert < expert_rows.size(); ++expert) {
    if (blocks.empty() || blocks.back().num_rows + expert_rows[expert] > max_rows) {
      blocks.push_back({static_cast<std::int64_t>(expert), 0, row, 0});
    }
    ++blocks.back().num_experts;
    blocks.back().num_rows += expert_rows[expert];
    row += expert_rows[expert];
  }
  return blocks;
}

std::int64_t largest(const std::vector<Block>& blocks) {
  std::int64_t rows = 0;
  for (const Block& block : blocks) {
    rows = std::max(rows, block.num_rows);
  }
  return rows;
}

constexpr std::int64_t block_rows = 256;

void swiglu_forward(const at::Tensor& gate_up, const at::Tensor& h) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, h.scalar_type(), "swiglu_forward", [&] {
    kernels::cpu::swiglu_forward(gate_up.const_data_ptr<scalar_t>(), h.size(0), h.size(1),
                                 h.mutable_data_ptr<scalar_t>());
  });
}

void swiglu_backward(const at::Tensor& dh, const at::Tensor& gate_up, const at::Tensor& dgate_up) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, dh.scalar_type(), "swiglu_backward", [&] {
    kernels::cpu::swiglu_backward(dh.const_data_ptr<scalar_t>(), gate_up.const_data_ptr<scalar_t>(),
                                  dh.size(0), dh.size(1), dgate_up.mutable_data_ptr<scalar_t>());
  });
}

/// Where a weight's gradient goes: its accumulator, a tensor for autograd, or nowhere (frozen).
class GradientTarget {
 public:
  explicit GradientTarget(const nn::Weight& weight) : sink_(weight.sink) {
    if (sink_ != nullptr) {
      tensor_ = sink_->buffer().view(weight.tensor.sizes());
      mode_ = sink_->is_empty() ? kernels::WeightGradient::overwrite : kernels::WeightGradient::accumulate;
    } else if (weight.tensor.requires_grad()) {
      tensor_ = at::empty_like(weight.tensor);
    }
  }
  /// Adds dy[rows of g]^T x[rows of g] of the block's experts.
  void add(const at::Tensor& dy, const at::Tensor& x, std::span<const std::int64_t> rows,
           const Block& block) const {
    if (tensor_.defined()) {
      kernels::grouped_linear_weight_gradient(dy, x, rows, mode_,
                                              tensor_.narrow(0, block.first_expert, block.num_experts));
    }
  }
  /// What to return to autograd once all experts are done.
  at::Tensor finish() const {
    if (sink_ == nullptr) {
      return tensor_;
    }
    sink_->mark_nonempty();
    return {};
  }

 private:
  parallel::GradAccumulator* sink_;
  at::Tensor tensor_;
  kernels::WeightGradient mode_ = kernels::WeightGradient::overwrite;
};

/// What one forward pass leaves for backward.
struct Pass {
  std::shared_ptr<const DispatchPlan> plan;
  nn::Weight gate_up_w, down_w;
  at::Tensor rows;     ///< as given
  at::Tensor gate_up;  ///< [R, 2F], before the activation
};

at::Tensor forward_rows(Pass& pass) {
  const DispatchPlan& plan = *pass.plan;
  const std::span<const std::int64_t> counts = plan.expert_rows;
  const std::vector<Block> blocks = blocks_of(plan.expert_rows, block_rows);
  const std::int64_t ffn = pass.down_w.tensor.size(2);
  const auto options = pass.rows.options();
  pass.gate_up = at::empty({plan.num_expert_rows(), 2 * ffn}, options);
  const at::Tensor h_scratch = at::empty({largest(blocks), ffn}, options);
  at::Tensor y = at::empty({plan.buffer_rows(), pass.rows.size(1)}, options);
  for (const Block& block : blocks) {
    const auto rows = counts.subspan(static_cast<std::size_t>(block.first_expert),
                                     static_cast<std::size_t>(block.num_experts));
    const at::Tensor gate_up = pass.gate_up.narrow(0, block.first_row, block.num_rows);
    const at::Tensor h = h_scratch.narrow(0, 0, block.num_rows);
    kernels::grouped_linear(pass.rows.narrow(0, block.first_row, block.num_rows),
                            pass.gate_up_w.tensor.narrow(0, block.first_expert, block.num_experts), rows,
                            gate_up);
    swiglu_forward(gate_up, h);
    kernels::grouped_linear(h, pass.down_w.tensor.narrow(0, block.first_expert, block.num_experts), rows,
                            y.narrow(0, block.first_row, block.num_rows));
  }
  return y;
}

/// Working memory of one block in backward.
struct BackwardScratch {
  BackwardScratch(std::int64_t rows, std::int64_t ffn, const at::TensorOptions& options)
      : h(at::empty({rows, ffn}, options)),
        dh(at::empty({rows, ffn}, options)),
        dgate_up(at::empty({rows, 2 * ffn}, options)) {}
  at::Tensor h, dh, dgate_up;
};

void backward_block(const Pass& pass, const Block& block, const at::Tensor& dy_all,
                    const BackwardScratch& scratch, const GradientTarget& dgate_up_w,
                    const GradientTarget& ddown_w, const at::Tensor& dx_all) {
  const auto rows =
      std::span<const std::int64_t>(pass.plan->expert_rows)
          .subspan(static_cast<std::size_t>(block.first_expert), static_cast<std::size_t>(block.num_experts));
  const auto in_block = [&](const at::Tensor& tensor) {
    return tensor.narrow(0, block.first_row, block.num_rows);
  };
  const auto of_experts = [&](const at::Tensor& tensor) {
    return tensor.narrow(0, block.first_expert, block.num_experts);
  };
  const at::Tensor h = scratch.h.narrow(0, 0, block.num_rows);
  const at::Tensor dh = scratch.dh.narrow(0, 0, block.num_rows);
  const at::Tensor dgate_up = scratch.dgate_up.narrow(0, 0, block.num_rows);
  const at::Tensor gate_up = in_block(pass.gate_up);
  const at::Tensor dy = in_block(dy_all);

  swiglu_forward(gate_up, h);
  ddown_w.add(dy, h, rows, block);
  kernels::grouped_linear_data_gradient(dy, of_experts(pass.down_w.tensor), rows, dh);
  swiglu_backward(dh, gate_up, dgate_up);
  dgate_up_w.add(dgate_up, in_block(pass.rows), rows, block);
  kernels::grouped_linear_data_gradient(dgate_up, of_experts(pass.gate_up_w.tensor), rows, in_block(dx_all));
}

/// Gradients of rows, gate_up and down.
detail::TensorVector backward_rows(const Pass& pass, const at::Tensor& dy) {
  const at::NoGradGuard no_grad;
  const std::vector<Block> blocks = blocks_of(pass.plan->expert_rows, block_rows);
  const GradientTarget dgate_up_w(pass.gate_up_w);
  const GradientTarget ddown_w(pass.down_w);
  const BackwardScratch scratch(largest(blocks), pass.down_w.tensor.size(2), pass.rows.options());
  at::Tensor dx = at::empty(pass.rows.sizes(), pass.rows.options());
  const at::Tensor dy_rows = dy.contiguous();
  for (const Block& block : blocks) {
    backward_block(pass, block, dy_rows, scratch, dgate_up_w, ddown_w, dx);
  }
  return {dx, dgate_up_w.finish(), ddown_w.finish()};
}

std::shared_ptr<parallel::Parameter> add_sharded(const std::string& name,
                                                 const std::vector<std::int64_t>& shape, double std,
                                                 parallel::ParameterMap& parameters,
                                                 const parallel::ProcessGrid& grid) {
  const std::int64_t local = shape[0] / grid.size(parallel::Axis::expert);
  parallel::ParameterOptions options;
  options.name = name;
  options.shard = parallel::ShardSpec::slice(shape, 0, grid.rank(parallel::Axis::expert) * local, local);
  options.kind = parallel::ParameterKind::expert;
  options.init.std = std;
  return parameters.add(options);
}

}  // namespace

GroupedExperts::GroupedExperts(const MoeOptions& options, std::int64_t hidden, const Init& init,
                               const std::string& prefix, parallel::ParameterMap& parameters,
                               const parallel::ProcessGrid& grid) {
  validate(options, grid.size(parallel::Axis::expert));
  const std::int64_t experts = options.num_experts;
  gate_up_ = add_sharded(prefix + "gate_up", {experts, 2 * options.ffn, hidden}, init.std, parameters, grid);
  down_ = add_sharded(prefix + "down", {experts, hidden, options.ffn}, init.output_std, parameters, grid);
}

at::Tensor GroupedExperts::forward(const at::Tensor& rows,
                                   const std::shared_ptr<const DispatchPlan>& plan) const {
  auto pass = std::make_shared<Pass>();
  pass->plan = plan;
  pass->gate_up_w = nn::read_weight(gate_up_);
  pass->down_w = nn::read_weight(down_);
  pass->rows = rows.detach();
  at::Tensor y;
  {
    const at::NoGradGuard no_grad;
    y = forward_rows(*pass);
  }
  return detail::attach_backward(
      {rows, pass->gate_up_w.tensor, pass->down_w.tensor}, {y},
      [pass](const detail::TensorVector& gradients) { return backward_rows(*pass, gradients[0]); })[0];
}

}  // namespace athanor::moe
