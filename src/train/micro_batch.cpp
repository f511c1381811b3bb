#include "train/micro_batch.hpp"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace athanor::train {

void backward_micro_batch(MicroBatch& micro, double seed) {
  std::vector<at::Tensor> roots{micro.objective};
  if (micro.aux.defined() && micro.aux.requires_grad()) {
    roots.push_back(micro.aux);
  }
  std::vector<at::Tensor> seeds;
  for (const at::Tensor& root : roots) {
    seeds.push_back(at::full_like(root, seed));
  }
  torch::autograd::backward(roots, seeds);
  micro.objective = at::Tensor();
  micro.aux = at::Tensor();
}

}  // namespace athanor::train
