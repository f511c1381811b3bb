// A small f64 model of two sparse layers with gradient buffers, and a batch for it.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <vector>

#include "infer/token_batch.hpp"
#include "model/transformer.hpp"
#include "support/synthetic_batches.hpp"

namespace athanor::model {

inline TransformerConfig small_config() {
  TransformerConfig config;
  config.vocab_size = 37;
  config.layers = 2;
  config.hidden = 16;
  config.heads = 4;
  config.kv_heads = 2;
  config.ffn = 24;
  config.init_std = 0.2;
  config.moe.num_experts = 8;
  config.moe.top_k = 2;
  config.moe.ffn = 6;
  config.moe.balance = {moe::BalanceKind::squared};
  config.moe.balance_counts = moe::BalanceCounts::batch;
  config.moe.balance_weight = 0.5;
  config.moe.z_weight = 0.1;
  return config;
}

inline nn::TokenBatch small_batch() {
  tests::SyntheticData data{37, 9, 3, 5, false};
  return infer::make_token_batch(tests::synthetic_rows(data, 0, 3), 1);
}

// A model with gradient buffers of its own.
struct Fixture {
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters{{3, at::kDouble, true}};
  Transformer model;
  moe::BalanceState balance;
  std::vector<moe::LayerStatistics> statistics;
  nn::TokenBatch batch = small_batch();

  explicit Fixture(const TransformerConfig& config) : Fixture(config, resolve_layers(config)) {}
  Fixture(const TransformerConfig& config, const std::vector<LayerSpec>& layers)
      : model(config, layers, Transformer::Range{}, parameters, grid), balance(model.make_balance_state()) {
    for (const auto& parameter : parameters.all()) {
      parameter->grad.attach(at::empty_like(parameter->value.detach()));
    }
    balance.previous_tokens = 27;  // some frequencies, so that the balance gradient is there
    for (std::int64_t layer = 0; layer < model.num_sparse_layers(); ++layer) {
      balance.previous_counts_LE[layer].copy_(at::arange(config.moe.num_experts, at::kLong));
    }
  }

  ForwardContext context() {
    ForwardContext context;
    context.valid_labels = 27;
    context.routed_tokens = 27;
    context.num_sequences = 3;
    context.balance = &balance;
    statistics = model.make_statistics();
    context.statistics = &statistics;
    return context;
  }

  // The whole objective N * L, with its graph.
  at::Tensor objective() {
    const ForwardContext forward = context();
    const auto hidden = model.blocks(model.embed(batch, forward), batch, forward);
    at::Tensor sum = model.head_loss(hidden.h_BsD, batch).sum;
    return hidden.aux.defined() ? sum + hidden.aux : sum;
  }

  void backward() {
    for (const auto& parameter : parameters.all()) {
      parameter->grad.reset();
    }
    torch::autograd::backward({objective()}, {});
    for (const auto& parameter : parameters.all()) {
      parameter->grad.finish();
    }
  }
};

}  // namespace athanor::model
