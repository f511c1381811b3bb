#include "moe/detail/attach_backward.hpp"

#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/activity.hpp"
#include "base/error.hpp"

namespace athanor::moe::detail {
namespace {

struct Holder : torch::CustomClassHolder {
  TensorVector outputs;
  std::string_view span;
  std::size_t num_inputs = 0;
  Backward backward;
};

class Attached : public torch::autograd::Function<Attached> {
 public:
  static TensorVector forward(torch::autograd::AutogradContext* context, const at::TensorList&,
                              const c10::intrusive_ptr<Holder>& holder) {
    context->set_materialize_grads(false);
    context->saved_data["holder"] = c10::IValue::make_capsule(holder);
    return std::exchange(holder->outputs, {});
  }

  static TensorVector backward(torch::autograd::AutogradContext* context, const TensorVector& gradients) {
    const auto holder = c10::static_intrusive_pointer_cast<Holder>(context->saved_data["holder"].toCapsule());
    ATHANOR_CHECK(holder->backward, "backward runs a second time over a graph whose buffers are freed");
    const Backward function = std::exchange(holder->backward, nullptr);
    const base::ScopedSpan span(base::SpanKind::compute, holder->span);
    TensorVector result = function(gradients);
    ATHANOR_CHECK(result.size() == holder->num_inputs, "backward gives {} gradients for {} inputs",
                  result.size(), holder->num_inputs);
    result.emplace_back();  // the holder is an argument too
    return result;
  }
};

}  // namespace

bool wants_gradient(const TensorVector& inputs) {
  if (!at::GradMode::is_enabled()) {
    return false;
  }
  for (const at::Tensor& input : inputs) {
    if (input.defined() && input.requires_grad()) {
      return true;
    }
  }
  return false;
}

TensorVector attach_backward(std::string_view span, const TensorVector& inputs, const TensorVector& outputs,
                             Backward backward) {
  if (!wants_gradient(inputs)) {
    return outputs;
  }
  auto holder = c10::make_intrusive<Holder>();
  holder->span = span;
  holder->outputs = outputs;
  holder->num_inputs = inputs.size();
  holder->backward = std::move(backward);
  return Attached::apply(at::TensorList(inputs), holder);
}

}  // namespace athanor::moe::detail
