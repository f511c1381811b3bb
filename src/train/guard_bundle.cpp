#include "train/guard_bundle.hpp"

#include <fmt/format.h>

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {
namespace {

nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value)
                              : nlohmann::ordered_json(fmt::format("{}", value));
}

// Where this rank's gradients are broken, or largest.
void describe_gradients(const parallel::ParameterMap& parameters, nlohmann::ordered_json& object) {
  std::string first_nonfinite;
  std::string largest;
  double largest_value = 0.0;
  std::int64_t nonfinite = 0;
  for (const auto& parameter : parameters.all()) {
    if (!parameter->trainable || !parameter->grad.keeps_sum()) {
      continue;
    }
    const at::Tensor& gradient = parameter->grad.buffer();
    if (gradient.numel() == 0) {
      continue;
    }
    const double value = gradient.abs().max().item<double>();  // NaN if any is
    if (!std::isfinite(value)) {
      nonfinite += gradient.isfinite().logical_not().sum().item<std::int64_t>();
      first_nonfinite = first_nonfinite.empty() ? parameter->name : first_nonfinite;
    } else if (value > largest_value) {
      largest_value = value;
      largest = parameter->name;
    }
  }
  object["nonfinite_gradients"] = nonfinite;
  object["first_nonfinite"] = first_nonfinite;
  object["largest_gradient"] = {{"parameter", largest}, {"value", largest_value}};
}

std::string describe_rank(const BundleInput& input) {
  nlohmann::ordered_json object;
  object["rank"] = input.role->rank();
  object["loss_sum"] = number(input.loss_sum);
  object["samples"] = nlohmann::ordered_json::array();
  for (const data::Batch& batch : *input.micro_batches) {
    for (const std::int64_t id : batch.sample_ids) {
      object["samples"].push_back(id);
    }
  }
  describe_gradients(*input.parameters, object);
  return object.dump();
}

}  // namespace

std::string write_bundle(const BundleInput& input) {
  if (input.options.bundle_dir.empty()) {
    return "";
  }
  const std::vector<std::string> ranks = parallel::all_gather_strings(describe_rank(input), *input.role);
  const std::string path = fmt::format("{}/guard-{}-step-{:08d}.json", input.options.bundle_dir,
                                       input.metrics.role, input.metrics.step);
  bool is_written = true;
  if (input.role->rank() == 0) {
    nlohmann::ordered_json object;
    object["role"] = input.metrics.role;
    object["step"] = input.metrics.step;
    object["reason"] = input.reason;
    object["loss"] = number(input.metrics.loss);
    object["grad_norm"] = number(input.metrics.grad_norm);
    object["first_bad_step"] = input.state.first_bad;
    object["trips"] = input.state.trips;
    object["transients"] = input.state.transients;
    object["rollbacks"] = input.state.rollbacks;
    object["passed_over"] = input.state.passed_over;
    object["losses"] = input.state.losses;
    object["norms"] = input.state.norms;
    for (const std::string& rank : ranks) {
      object["ranks"].push_back(nlohmann::ordered_json::parse(rank));
    }
    std::ofstream file(path, std::ios::trunc);
    file << object.dump(1) << '\n' << std::flush;
    is_written = static_cast<bool>(file);
    if (!is_written) {
      base::log_local(base::LogLevel::warning, fmt::format("cannot write {}", path));
    }
  }
  return parallel::all_reduce_max(std::int64_t{is_written ? 0 : 1}, *input.role) == 0 ? path : "";
}

}  // namespace athanor::train
