// A small f64 model on every layout of the test's ranks, and the same on one rank.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "model/transformer.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::tests {

/// All legal (tp, ep) of `ranks` ranks; dp follows.
inline std::vector<parallel::ParallelDims> layouts(int ranks, int max_tp = 4) {
  std::vector<parallel::ParallelDims> out;
  for (int tp = 1; tp <= ranks && tp <= max_tp; ++tp) {
    for (int ep = 1; ep <= ranks; ++ep) {
      if (ranks % tp == 0 && ranks % ep == 0) {
        out.push_back(parallel::ParallelDims::from_role_size(ranks, tp, ep));
      }
    }
  }
  return out;
}

inline std::string name(const parallel::ParallelDims& dims) {
  return "dp " + std::to_string(dims.dp) + " tp " + std::to_string(dims.tp) + " ep " +
         std::to_string(dims.ep);
}

inline model::TransformerConfig small_config() {
  model::TransformerConfig config;
  config.vocab_size = 37;  // tp 2 and 4 do not divide it
  config.layers = 2;
  config.hidden = 16;
  config.heads = 4;
  config.kv_heads = 2;
  config.max_seq = 24;
  config.init_std = 0.3;  // decisive logits
  config.moe.num_experts = 8;
  config.moe.top_k = 2;
  config.moe.ffn = 8;
  config.moe.shared_experts = 1;
  config.moe.balance = {moe::BalanceKind::bias};
  return config;
}

/// A model with its parameters; the same numbers on every layout.
struct Model {
  Model(const model::TransformerConfig& config, const parallel::ProcessGrid& grid,
        at::ScalarType dtype = at::kDouble)
      : parameters({11, dtype, true}), transformer(config, parameters, grid) {}
  parallel::ParameterMap parameters;
  model::Transformer transformer;
};

/// Balancing state whose biases change the routing.
inline moe::BalanceState biased_state(const model::Transformer& transformer) {
  moe::BalanceState state = transformer.make_balance_state();
  const at::Tensor steps = at::arange(state.bias_PE.numel(), state.bias_PE.options()).view_as(state.bias_PE);
  state.bias_PE = at::sin(steps).mul_(0.2);
  return state;
}

}  // namespace athanor::tests
