#include "nn/feed_forward.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/autograd/functions.hpp"

namespace athanor::nn {

FeedForward::FeedForward(const FeedForwardOptions& options, const std::string& prefix,
                         parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid)
    : keep_(options.keep), tp_(&grid.comm(parallel::Axis::tensor)) {
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

at::Tensor FeedForward::forward(const at::Tensor& x_BsD, const StoredActivation& kept_x) const {
  ATHANOR_CHECK(!kept_x.is_defined() || tp_->size() == 1,
                "a slice of the sequence is not what backward reads");
  const at::Tensor x_BSD = parallel::autograd::all_gather_dim(x_BsD, 1, *tp_, parallel::Traffic::other);
  const Keep keep = keep_if_backward(keep_);
  const StoredActivation kept = kept_x.is_defined() ? kept_x : store_activation(x_BSD, keep);
  const at::Tensor hidden = swiglu(linear(x_BSD, read_weight(gate_up_), kept), keep);
  const at::Tensor y_BSD = linear(hidden, read_weight(down_), store_activation(hidden, keep));
  return parallel::autograd::reduce_scatter_dim(y_BSD, 1, *tp_, parallel::Traffic::other);
}

}  // namespace athanor::nn
