#include "moe/moe_options.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace athanor::moe {
namespace {

void validate_sizes(const MoeOptions& options) {
  if (options.num_experts < 1) {
    throw base::ConfigError(
        "moe.experts = {} makes no sparse layer (it needs an expert) give 1 or more, or 0 for a "
        "dense model",
        options.num_experts);
  }
  if (options.top_k < 1 || options.top_k > options.num_experts) {
    throw base::ConfigError(
        "moe.top_k = {} is out of range (a token chooses among moe.experts = {}) give 1 to {}", options.top_k,
        options.num_experts, options.num_experts);
  }
  if (options.ffn < 1) {
    throw base::ConfigError("moe.ffn = {} is no width (an expert needs one) give 1 or more", options.ffn);
  }
  if (options.shared_experts < 0) {
    throw base::ConfigError("moe.shared_experts = {} is negative (it is a number of experts) give 0 or more",
                            options.shared_experts);
  }
  if (options.every < 1) {
    throw base::ConfigError("moe.every = {} is out of range (every n-th layer is sparse) give 1 or more",
                            options.every);
  }
}

void validate_groups(const MoeOptions& options) {
  if (options.groups < 1 || options.num_experts % options.groups != 0) {
    throw base::ConfigError(
        "moe.groups = {} does not divide moe.experts = {} (groups are equal) give a divisor of {}",
        options.groups, options.num_experts, options.num_experts);
  }
  if (options.group_top_k < 0 || options.group_top_k > options.groups) {
    throw base::ConfigError(
        "moe.group_top_k = {} is out of range (a token chooses among moe.groups = {}) give 0 (all) "
        "to {}",
        options.group_top_k, options.groups, options.groups);
  }
  const std::int64_t group_size = options.num_experts / options.groups;
  if (options.group_top_k > 0 && options.top_k > options.group_top_k * group_size) {
    throw base::ConfigError(
        "moe.top_k = {} exceeds the {} experts a token may choose from (moe.group_top_k = {} groups "
        "of {} experts) raise moe.group_top_k or lower moe.top_k",
        options.top_k, options.group_top_k * group_size, options.group_top_k, group_size);
  }
}

void validate_weights(const MoeOptions& options) {
  const auto check = [](const char* name, double value) {
    if (!std::isfinite(value) || value < 0.0) {
      throw base::ConfigError("{} = {} is out of range (it is a finite weight) give 0 or more", name, value);
    }
  };
  check("moe.capacity_factor", options.capacity_factor);
  check("moe.balance_weight", options.balance_weight);
  check("moe.z_weight", options.z_weight);
  check("moe.bias_rate", options.bias_rate);
}

}  // namespace

void validate(const MoeOptions& options, int ep) {
  validate_sizes(options);
  validate_groups(options);
  validate_weights(options);
  if (ep < 1 || options.num_experts % ep != 0) {
    throw base::ConfigError(
        "moe.experts = {} is not a multiple of parallel.ep = {} (each of the ep ranks holds an equal "
        "block of experts) choose an ep that divides {}",
        options.num_experts, ep, options.num_experts);
  }
  if (options.dispatch_chunks < 1 || options.dispatch_chunks > options.num_experts / ep) {
    throw base::ConfigError(
        "moe.dispatch_chunks = {} is out of range (a rank's {} experts are its parts) give 1 to {}",
        options.dispatch_chunks, options.num_experts / ep, options.num_experts / ep);
  }
}

std::int64_t sequence_capacity(const MoeOptions& options, std::int64_t seq) {
  if (options.capacity_factor == 0.0) {
    return 0;
  }
  const double mean = static_cast<double>(seq) * static_cast<double>(options.top_k) /
                      static_cast<double>(options.num_experts);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(options.capacity_factor * mean)));
}

}  // namespace athanor::moe
