#include "nn/feed_forward.hpp"

#include <ATen/ATen.h>

#include "parallel/autograd/functions.hpp"

namespace athanor::nn {

FeedForward::FeedForward(const FeedForwardOptions& options, const std::string& prefix,
                         parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid)
    : tp_(&grid.comm(parallel::Axis::tensor)) {
  const parallel::Block block = parallel::block_of(options.ffn, tp_->size(), tp_->rank());
  parallel::ParameterOptions gate_up;
  gate_up.name = prefix + "gate_up.weight";
  gate_up.shard = parallel::ShardSpec::slice({2, options.ffn, options.hidden}, 1, block.first, block.count);
  gate_up.init.std = options.init_std;
  gate_up_ = parameters.add(gate_up);
  parallel::ParameterOptions down;
  down.name = prefix + "down.weight";
  down.shard = parallel::ShardSpec::slice({options.hidden, options.ffn}, 1, block.first, block.count);
  down.init.std = options.output_init_std;
  down_ = parameters.add(down);
}

at::Tensor FeedForward::forward(const at::Tensor& x_BsD) const {
  const at::Tensor x_BSD = parallel::autograd::all_gather_dim(x_BsD, 1, *tp_, parallel::Traffic::other);
  const at::Tensor hidden = swiglu(linear(x_BSD, read_weight(gate_up_)));
  const at::Tensor y_BSD = linear(hidden, read_weight(down_));
  return parallel::autograd::reduce_scatter_dim(y_BSD, 1, *tp_, parallel::Traffic::other);
}

}  // namespace athanor::nn
