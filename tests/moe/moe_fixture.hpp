// A sparse layer with gradient buffers, and batches for it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "moe/balance_loss.hpp"
#include "moe/moe_layer.hpp"
#include "moe_reference.hpp"
#include "nn/token_batch.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::tests {

inline constexpr double fixture_init_std = 0.4;  // large: routing, gates and losses all differ between tokens

/// Owns the parameters (same values on every layout) and the layer.
struct LayerUnderTest {
  LayerUnderTest(const moe::MoeOptions& layer_options, std::int64_t hidden, const parallel::ProcessGrid& grid,
                 at::ScalarType dtype = at::kDouble, std::uint64_t seed = 7)
      : options(layer_options), parameters({seed, dtype, true}) {
    layer = std::make_unique<moe::MoeLayer>(
        options, moe::MoeLayer::Shape{hidden, fixture_init_std, fixture_init_std}, "moe.", parameters, grid);
    for (const auto& parameter : parameters.all()) {
      const at::ScalarType type = parallel::accumulation_type(parameter->value.scalar_type());
      parameter->grad.attach(
          at::full(parameter->value.sizes(), std::nan(""), parameter->value.options().dtype(type)));
    }
  }
  /// The gradient so far; zero when nothing was added.
  at::Tensor grad(const std::string& name) const {
    const auto parameter = parameters.find(name);
    parameter->grad.finish();
    return parameter->grad.buffer();
  }
  at::Tensor value(const std::string& name) const {
    const auto parameter = parameters.find(name);
    return parameter == nullptr ? at::Tensor() : parameter->value;
  }
  void reset_gradients() const {
    for (const auto& parameter : parameters.all()) {
      parameter->grad.reset();
    }
  }
  /// Leaves for the reference.
  ReferenceWeights reference_weights() const {
    const auto leaf = [this](const std::string& name) {
      const at::Tensor tensor = value(name);
      return tensor.defined() ? tensor.detach().to(at::kDouble).clone().requires_grad_() : at::Tensor();
    };
    return {leaf("moe.router.weight"), leaf("moe.experts.gate_up"), leaf("moe.experts.down"),
            leaf("moe.shared.gate_up.weight"), leaf("moe.shared.down.weight")};
  }

  moe::MoeOptions options;
  parallel::ParameterMap parameters;
  std::unique_ptr<moe::MoeLayer> layer;
};

/// Sequences [first, first + count) of a run, padded to `padded_seq` positions.
inline nn::TokenBatch make_batch(std::int64_t first, std::int64_t count, std::int64_t seq,
                                 std::int64_t padded_seq) {
  nn::TokenBatch batch;
  batch.tokens_BS = at::zeros({count, padded_seq}, at::kLong);
  batch.positions_BS = at::arange(padded_seq, at::kLong).expand({count, padded_seq}).contiguous();
  batch.sample_ids_B = at::arange(first, first + count, at::kLong);
  batch.real_seq = seq;
  return batch;
}

/// Context of a global batch of `sequences` sequences of `seq` tokens; the labels' number is arbitrary.
inline moe::MoeContext make_context(const nn::TokenBatch& batch, std::int64_t sequences, std::int64_t seq) {
  moe::MoeContext context;
  context.batch = &batch;
  context.valid_labels = 0.75 * static_cast<double>(sequences * seq);
  context.routed_tokens = static_cast<double>(sequences * seq);
  context.num_sequences = static_cast<double>(sequences);
  return context;
}

/// Some uneven f^ that sums to k.
inline at::Tensor uneven_frequency(const moe::MoeOptions& options) {
  const at::Tensor weights = at::arange(1, options.num_experts + 1, at::kDouble).square();
  return weights / weights.sum() * static_cast<double>(options.top_k);
}

}  // namespace athanor::tests
