#include "nn/weight.hpp"

#include <ATen/ATen.h>

namespace athanor::nn {

Weight read_weight(const std::shared_ptr<parallel::Parameter>& parameter) {
  parameter->wait_until_readable();
  if (!parameter->trainable || !at::GradMode::is_enabled()) {
    return {parameter->value.detach(), nullptr};
  }
  return {parameter->value, parameter->grad.is_attached() ? &parameter->grad : nullptr};
}

}  // namespace athanor::nn
