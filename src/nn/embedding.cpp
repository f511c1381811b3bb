#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.hpp"
#include "kernels/tensor_kernels.hpp"
#include "nn/detail/function_context.hpp"
#include "nn/vocab_parallel.hpp"
#include "parallel/autograd/functions.hpp"

namespace athanor::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// Rows of weight [v, D] by local index; a negative index (another rank's row) gives zeros.
struct LookUpRows : Function<LookUpRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows_N, const at::Tensor& weight_vD,
                            parallel::GradAccumulator* sink) {
    const at::Tensor y_ND = at::empty({rows_N.numel(), weight_vD.size(1)}, weight_vD.options());
    kernels::kernels_of(weight_vD).combine_rows(weight_vD, rows_N.unsqueeze(1), at::Tensor(), y_ND);
    ctx->save_for_backward({rows_N, weight_vD});
    detail::save_sink(ctx, sink);
    return y_ND;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& rows_N = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor dy_ND = grads[0].contiguous();
    parallel::GradAccumulator* sink = detail::saved_sink(ctx);
    at::Tensor target;
    if (sink != nullptr) {
      target = sink->zeroed_buffer();  // rows that no token names keep their sum, or become zero
    } else {
      target = at::zeros(weight.sizes(),
                         weight.options().dtype(parallel::accumulation_type(weight.scalar_type())));
    }
    kernels::kernels_of(dy_ND).add_rows(dy_ND, rows_N, target);
    if (sink != nullptr) {
      sink->mark_nonempty();
    }
    return {at::Tensor(), sink == nullptr ? target.to(weight.scalar_type()) : at::Tensor(), at::Tensor()};
  }
};

}  // namespace

VocabParallelEmbedding::VocabParallelEmbedding(std::int64_t vocab, std::int64_t hidden, double init_std,
                                               const std::string& name, parallel::ParameterMap& parameters,
                                               const parallel::ProcessGrid& grid)
    : tp_(&grid.comm(parallel::Axis::tensor)) {
  const parallel::Block block = parallel::block_of(vocab, tp_->size(), tp_->rank());
  parallel::ParameterOptions options;
  options.name = name;
  options.shard = parallel::ShardSpec::slice({vocab, hidden}, 0, block.first, block.count);
  options.init.std = init_std;
  weight_ = parameters.add(options);
}

at::Tensor VocabParallelEmbedding::forward(const at::Tensor& tokens_BS) const {
  const std::int64_t vocab = weight_->shard.global_shape[0];
  ATHANOR_CHECK(tokens_BS.numel() == 0 || (tokens_BS.min().item<std::int64_t>() >= 0 &&
                                           tokens_BS.max().item<std::int64_t>() < vocab),
                "a token id is outside the vocabulary of {}", vocab);
  const at::Tensor local = tokens_BS - weight_->shard.offset[0];
  const at::Tensor rows_N = at::where(local.lt(weight_->shard.local_shape[0]), local, -1)
                                .contiguous()
                                .view({tokens_BS.numel()})
                                .to(weight_->value.device());
  const Weight weight = read_weight(weight_);
  const at::Tensor y_ND = LookUpRows::apply(rows_N, weight.tensor, weight.sink);
  const at::Tensor y_BSD = y_ND.view({tokens_BS.size(0), tokens_BS.size(1), y_ND.size(1)});
  return parallel::autograd::reduce_scatter_dim(y_BSD, 1, *tp_, parallel::Traffic::other);
}

}  // namespace athanor::nn
