#include "model/recompute.hpp"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>

namespace athanor::model {
namespace {

// Carries the block through saved_data, which takes only IValues: the node owns it by pointer.
struct BlockHolder : torch::CustomClassHolder {
  explicit BlockHolder(RecomputableBlock block) : block(std::move(block)) {}
  RecomputableBlock block;
};

class RecomputeFunction : public torch::autograd::Function<RecomputeFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& x,
                                                const c10::intrusive_ptr<BlockHolder>& holder) {
    context->save_for_backward({x});
    context->saved_data["block"] = c10::IValue::make_capsule(holder);
    BlockOutput out = holder->block(x, Pass::first);
    context->saved_data["has_aux"] = out.aux.defined();
    torch::autograd::variable_list outputs{
        out.y_BsD, out.aux.defined() ? out.aux : at::zeros({}, x.options().requires_grad(false))};
    if (out.attention.q_BSHC.defined()) {
      outputs.push_back(out.attention.q_BSHC);
      outputs.push_back(out.attention.k_BSGC);
    }
    return outputs;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto holder =
        c10::static_intrusive_pointer_cast<BlockHolder>(context->saved_data["block"].toCapsule());
    at::AutoGradMode enable_grad(true);
    at::Tensor x = context->get_saved_variables()[0].detach().requires_grad_(true);
    const BlockOutput out = holder->block(x, Pass::repeated);
    torch::autograd::variable_list roots{out.y_BsD};
    torch::autograd::variable_list seeds{gradients[0]};
    if (context->saved_data["has_aux"].toBool() && out.aux.requires_grad()) {
      roots.push_back(out.aux);
      seeds.push_back(gradients[1]);
    }
    if (out.attention.q_BSHC.defined()) {
      roots.insert(roots.end(), {out.attention.q_BSHC, out.attention.k_BSGC});
      seeds.insert(seeds.end(), {gradients[2], gradients[3]});
    }
    torch::autograd::backward(roots, seeds);
    return {x.grad(), at::Tensor()};
  }
};

}  // namespace

BlockOutput recompute_block(const at::Tensor& x_BsD, const RecomputableBlock& block) {
  auto out = RecomputeFunction::apply(x_BsD, c10::make_intrusive<BlockHolder>(block));
  return {out[0], out[1], out.size() > 2 ? nn::QueriesKeys{out[2], out[3]} : nn::QueriesKeys{}};
}

}  // namespace athanor::model
