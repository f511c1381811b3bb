#include "moe/grouped_experts.hpp"

#include <algorithm>
#include <span>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "kernels/grouped_gemm.hpp"
#include "kernels/tensor_kernels.hpp"
#include "moe/detail/attach_backward.hpp"
#include "moe/detail/row_flow.hpp"
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
/// stays in the second-level cache; none is of two chunks. Experts are multiplied one by one, so no bit
/// depends on this.
std::vector<Block> blocks_of(const DispatchPlan& plan, std::int64_t max_rows) {
  std::vector<Block> blocks;
  std::int64_t row = 0;
  for (const DispatchChunk& chunk : plan.chunks) {
    for (std::int64_t i = 0; i < chunk.num_experts; ++i) {
      const std::int64_t expert = chunk.first_expert + i;
      const std::int64_t rows = plan.expert_rows[static_cast<std::size_t>(expert)];
      if (i == 0 || blocks.back().num_rows + rows > max_rows) {
        blocks.push_back({expert, 0, row, 0});
      }
      ++blocks.back().num_experts;
      blocks.back().num_rows += rows;
      row += rows;
    }
  }
  return blocks;
}

/// Calls compute(block), which turns rows into results, for all blocks, while the rows of other chunks are
/// under way. Undefined results: nobody asks for them back.
template <typename Compute>
void compute_chunks(const DispatchPlan& plan, const std::vector<Block>& blocks, detail::RowFlow& flow,
                    const at::Tensor& rows, const at::Tensor& results, const Compute& compute) {
  auto block = blocks.begin();
  for (std::size_t c = 0; c < plan.chunks.size(); ++c) {
    const std::int64_t end = plan.chunks[c].first_expert + plan.chunks[c].num_experts;
    flow.await(rows, plan, c);
    for (; block != blocks.end() && block->first_expert < end; ++block) {
      compute(*block);
      flow.progress();
    }
    if (results.defined()) {
      flow.give_back(results, plan, c);
    }
  }
}

std::int64_t largest(const std::vector<Block>& blocks) {
  std::int64_t rows = 0;
  for (const Block& block : blocks) {
    rows = std::max(rows, block.num_rows);
  }
  return rows;
}

constexpr std::int64_t block_rows = 256;

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
  nn::StoredActivation rows;     ///< [at least R, D]
  nn::StoredActivation gate_up;  ///< [R, 2F], before the activation
  bool wants_row_gradients = false;
};

/// `rows` as given.
at::Tensor forward_rows(Pass& pass, const at::Tensor& rows_in, const nn::Keep& keep) {
  const DispatchPlan& plan = *pass.plan;
  const std::span<const std::int64_t> counts = plan.expert_rows;
  const std::vector<Block> blocks = blocks_of(plan, block_rows);
  const std::int64_t ffn = pass.down_w.tensor.size(2);
  const auto options = rows_in.options();
  // Of a row buffer only the first R rows are read.
  pass.rows = keep ? nn::allocate_rows(plan.num_expert_rows(), rows_in.size(1), options, keep)
                   : nn::StoredActivation{rows_in, at::Tensor()};
  pass.gate_up = nn::allocate_rows(plan.num_expert_rows(), 2 * ffn, options, keep);
  const at::Tensor gate_up_scratch = keep ? at::empty({largest(blocks), 2 * ffn}, options) : at::Tensor();
  const at::Tensor h_scratch = at::empty({largest(blocks), ffn}, options);
  at::Tensor y = at::empty({plan.buffer_rows(), rows_in.size(1)}, options);
  compute_chunks(plan, blocks, *plan.forward_flow, rows_in, y, [&](const Block& block) {
    const auto rows = counts.subspan(static_cast<std::size_t>(block.first_expert),
                                     static_cast<std::size_t>(block.num_experts));
    const nn::StoredActivation kept = pass.gate_up.narrow(block.first_row, block.num_rows);
    const at::Tensor gate_up = keep ? gate_up_scratch.narrow(0, 0, block.num_rows) : kept.data;
    const at::Tensor h = h_scratch.narrow(0, 0, block.num_rows);
    const at::Tensor x = rows_in.narrow(0, block.first_row, block.num_rows);
    kernels::grouped_linear(x, pass.gate_up_w.tensor.narrow(0, block.first_expert, block.num_experts), rows,
                            gate_up);
    if (keep) {
      nn::store_rows(pass.rows.narrow(block.first_row, block.num_rows), x);
      nn::store_rows(kept, gate_up);
    }
    kernels::kernels_of(h).swiglu_forward(gate_up, h);
    kernels::grouped_linear(h, pass.down_w.tensor.narrow(0, block.first_expert, block.num_experts), rows,
                            y.narrow(0, block.first_row, block.num_rows));
  });
  return y;
}

/// Working memory of one block in backward.
struct BackwardScratch {
  BackwardScratch(std::int64_t rows, std::int64_t ffn, std::int64_t hidden, bool restores,
                  const at::TensorOptions& options)
      : h(at::empty({rows, ffn}, options)),
        dh(at::empty({rows, ffn}, options)),
        dgate_up(at::empty({rows, 2 * ffn}, options)),
        gate_up(restores ? at::empty({rows, 2 * ffn}, options) : at::Tensor()),
        rows_in(restores ? at::empty({rows, hidden}, options) : at::Tensor()) {}
  at::Tensor h, dh, dgate_up;
  at::Tensor gate_up, rows_in;  ///< where they are not kept as they are
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
  const at::Tensor gate_up =
      nn::restore_rows(pass.gate_up.narrow(block.first_row, block.num_rows), scratch.gate_up);
  const at::Tensor rows_in =
      nn::restore_rows(pass.rows.narrow(block.first_row, block.num_rows), scratch.rows_in);
  const at::Tensor dy = in_block(dy_all);

  kernels::kernels_of(h).swiglu_forward(gate_up, h);
  ddown_w.add(dy, h, rows, block);
  kernels::grouped_linear_data_gradient(dy, of_experts(pass.down_w.tensor), rows, dh);
  kernels::kernels_of(dh).swiglu_backward(dh, gate_up, dgate_up);
  dgate_up_w.add(dgate_up, rows_in, rows, block);
  kernels::grouped_linear_data_gradient(dgate_up, of_experts(pass.gate_up_w.tensor), rows, in_block(dx_all));
}

/// Gradients of rows, gate_up and down.
detail::TensorVector backward_rows(const Pass& pass, const at::Tensor& dy) {
  const at::NoGradGuard no_grad;
  const std::vector<Block> blocks = blocks_of(*pass.plan, block_rows);
  const GradientTarget dgate_up_w(pass.gate_up_w);
  const GradientTarget ddown_w(pass.down_w);
  const std::int64_t hidden = pass.rows.data.size(1);
  const BackwardScratch scratch(largest(blocks), pass.down_w.tensor.size(2), hidden, pass.rows.is_fp8(),
                                dy.options());
  at::Tensor dx = at::empty({pass.plan->buffer_rows(), hidden}, dy.options());
  const at::Tensor dy_rows = dy.contiguous();
  compute_chunks(
      *pass.plan, blocks, *pass.plan->backward_flow, dy_rows, pass.wants_row_gradients ? dx : at::Tensor(),
      [&](const Block& block) { backward_block(pass, block, dy_rows, scratch, dgate_up_w, ddown_w, dx); });
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
                               const parallel::ProcessGrid& grid)
    : keep_(init.keep) {
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
  pass->wants_row_gradients = rows.requires_grad();
  const nn::Keep keep = nn::keep_if_backward(keep_);
  at::Tensor y;
  {
    const at::NoGradGuard no_grad;
    const base::ScopedSpan span(base::SpanKind::compute, "experts");
    y = forward_rows(*pass, rows.detach(), keep);
  }
  return detail::attach_backward(
      "experts backward", {rows, pass->gate_up_w.tensor, pass->down_w.tensor}, {y},
      [pass](const detail::TensorVector& gradients) { return backward_rows(*pass, gradients[0]); })[0];
}

}  // namespace athanor::moe
