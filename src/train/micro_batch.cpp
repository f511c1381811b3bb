#include "train/micro_batch.hpp"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace athanor::train {

double forward_micro_batch(const model::Transformer& model, const model::ForwardContext& context,
                           MicroBatch& micro) {
  model::ForwardContext micro_context = context;
  micro_context.forced_ids = micro.forced_ids.empty() ? nullptr : &micro.forced_ids;
  const at::Tensor x_BsD = model.embed(micro.batch, micro_context);
  const model::Transformer::Hidden hidden = model.blocks(x_BsD, micro.batch, micro_context);
  micro.ce_sum = model.head_loss(hidden.h_BsD, micro.batch).sum;
  micro.aux = hidden.aux;
  return micro.ce_sum.item<double>();
}

void backward_micro_batch(MicroBatch& micro, double seed) {
  std::vector<at::Tensor> roots{micro.ce_sum};
  if (micro.aux.defined() && micro.aux.requires_grad()) {
    roots.push_back(micro.aux);
  }
  std::vector<at::Tensor> seeds;
  for (const at::Tensor& root : roots) {
    seeds.push_back(at::full_like(root, seed));
  }
  torch::autograd::backward(roots, seeds);
  micro.ce_sum = at::Tensor();
  micro.aux = at::Tensor();
}

}  // namespace athanor::train
