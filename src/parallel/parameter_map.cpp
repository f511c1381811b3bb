#include "parallel/parameter_map.hpp"

#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "parallel/initial_values.hpp"

namespace athanor::parallel {

std::shared_ptr<Parameter> ParameterMap::add(const ParameterOptions& options) {
  if (const auto existing = find(options.name)) {
    ATHANOR_CHECK(existing->shard == options.shard, "parameter {} exists already with another slice",
                  options.name);
    ++existing->num_layers;
    return existing;
  }
  auto parameter = std::make_shared<Parameter>();
  parameter->name = options.name;
  parameter->shard = options.shard;
  parameter->decay = options.decay;
  parameter->kind = options.kind;
  parameter->init = options.init;
  if (options_.allocate) {
    parameter->value = at::empty(options.shard.local_shape, at::TensorOptions().dtype(options_.dtype));
    if (options.init.kind == InitialValue::Kind::constant) {
      parameter->value.fill_(options.init.constant);
    } else {
      const base::PhiloxStream stream(options_.seed, base::RandomPurpose::initial_weight, options.name);
      fill_normal(parameter->value, options.shard, options.init.std, stream);
    }
    parameter->value = parameter->value.to(options_.device);
    parameter->value.set_requires_grad(parameter->trainable);
  }
  parameters_.push_back(parameter);
  by_name_.emplace(parameter->name, parameter);
  return parameter;
}

std::shared_ptr<Parameter> ParameterMap::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) {
    return nullptr;
  }
  found->second->wait_until_readable();
  return found->second;
}

const std::vector<std::shared_ptr<Parameter>>& ParameterMap::all() const {
  for (const auto& parameter : parameters_) {
    parameter->wait_until_readable();
  }
  return parameters_;
}

std::int64_t ParameterMap::global_numel() const {
  std::int64_t sum = 0;
  for (const auto& parameter : parameters_) {
    sum += parameter->shard.global_numel();
  }
  return sum;
}

std::int64_t ParameterMap::local_numel() const {
  std::int64_t sum = 0;
  for (const auto& parameter : parameters_) {
    sum += parameter->shard.local_numel();
  }
  return sum;
}

at::ScalarType accumulation_type(at::ScalarType compute) {
  return compute == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace athanor::parallel
