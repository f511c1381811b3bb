// The largest amount of memory that the tensors of one micro-batch take on a rank, by walking through its
// forward and backward pass with a meter, in the order in which the libraries take and free them.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/precision.hpp"
#include "model/transformer_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// What a tensor is for.
enum class Activation { residual, attention, router, dispatch, wire, experts, ffn, head };

inline constexpr std::size_t num_activation_kinds = 8;
/// In the order of Activation, for tables and --json.
inline constexpr std::array<std::string_view, num_activation_kinds> activation_names = {
    "residual", "attention", "router", "dispatch", "wire", "experts", "ffn", "head"};

/// Rows of the experts of one rank in a sparse layer and micro-batch.
struct RoutedRows {
  std::int64_t computed = 0;  ///< rows of the rank's experts
  std::int64_t largest = 0;   ///< of one expert
  std::int64_t sent = 0;      ///< of the rank's own tokens, to other ranks
  std::int64_t received = 0;  ///< of other ranks' tokens
};

/// Even routing: every expert gets as many choices as any other (rounded up).
RoutedRows even_rows(const model::TransformerConfig& model, const parallel::ParallelDims& dims,
                     std::int64_t tokens);
/// All tokens of the expert group choose as many experts of this rank as they can; moe.capacity_factor limits
/// it. `tokens`: of this rank; `seq`: of a sequence.
RoutedRows worst_rows(const model::TransformerConfig& model, const parallel::ParallelDims& dims,
                      std::int64_t tokens, std::int64_t seq);

enum class PassKind { training, forward_only };

struct ActivationInput {
  model::TransformerConfig model;  ///< with storage and moe.wire as they are used
  parallel::ParallelDims dims;
  base::ComputeType compute = base::ComputeType::f32;
  std::int64_t sequences = 1;  ///< of a micro-batch
  std::int64_t seq = 1;
  RoutedRows rows;
  PassKind pass = PassKind::training;
  std::int64_t signal_bytes = 0;     ///< a teacher's: what it gathers of a micro-batch before it is sent
  std::int64_t teacher_columns = 0;  ///< a student's: accumulation-type numbers of teacher logits a token
  std::int64_t state_elements = 0;   ///< a student's: numbers of compared hidden states a token
};

struct ActivationPlan {
  std::int64_t peak = 0;
  std::array<std::int64_t, num_activation_kinds> at_peak{};
  std::int64_t of(Activation kind) const { return at_peak[static_cast<std::size_t>(kind)]; }
};

ActivationPlan plan_activations(const ActivationInput& input);

}  // namespace athanor::config
