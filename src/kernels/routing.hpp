// The router's passes over [T, E] on a GPU: choice, gates, statistics and the gradient of the logits. The
// CPU's are in the sparse layer (moe), which has what is around them.
//
// Legend: T tokens of B sequences in (sequence, position) order, E experts, K choices. y are the logits whose
// softmax over all experts is s' (the logits x for softmax scores, log sigmoid(x) for sigmoid scores). A is
// f32 or f64.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"

namespace athanor::kernels {

/// How many experts, choices and groups.
struct ChoiceShape {
  std::int64_t experts = 0;
  std::int64_t choices = 0;
  std::int64_t groups = 1;
  std::int64_t group_choices = 0;  ///< groups a token may choose from; 0 or `groups`: all
};

/// What a gate is a function of.
enum class GateKind {
  normalised,  ///< softmax of y over the chosen
  softmax,     ///< s' of the chosen
  sigmoid,     ///< e^y of the chosen
};

/// Sums over tokens.
struct RouterSums {
  double entropy = 0.0;  ///< of s', nats
  double z = 0.0;        ///< (logsumexp of y)^2
};

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {

/// ids[t] = the K experts of the largest scores[t, i] + bias[i], best first; equal values: the lower id
/// first. With limited groups only experts of the best groups are candidates: a group's score is the sum of
/// its max(1, K / group_choices) largest values. bias may be nullptr. NaN counts as -infinity, so ids are
/// always valid.
template <typename A>
void choose_experts(const A* scores_TE, const A* bias_E, std::int64_t tokens, const ChoiceShape& shape,
                    std::int64_t* ids_TK, device::StreamHandle stream);

/// gates[t] = softmax of y over the chosen experts.
template <typename A>
void normalised_gates(const A* y_TE, const std::int64_t* ids_TK, std::int64_t tokens, std::int64_t experts,
                      std::int64_t choices, A* gates_TK, device::StreamHandle stream);

/// *sums += the tokens' sums; score_sums[sequence, i] += s'; lse[t] = logsumexp_i y[t, i]. `entropy_T` is
/// working memory. Tokens are added in an order of their number alone.
template <typename A>
void router_sums(const A* y_TE, const A* normalised_TE, std::int64_t tokens, std::int64_t tokens_per_sequence,
                 std::int64_t experts, double* score_sums_BE, A* lse_T, double* entropy_T, RouterSums* sums,
                 device::StreamHandle stream);

/// dy[t, i] += scale * s'_i (a_i - sum_j a_j s'_j), with a = coefficients[sequence % coefficient_rows].
template <typename A>
void add_balance_gradient(const A* normalised_TE, const A* coefficients, std::int64_t coefficient_rows,
                          std::int64_t tokens, std::int64_t tokens_per_sequence, std::int64_t experts,
                          A scale, A* dy_TE, device::StreamHandle stream);

/// dy += the gradient of the gates: dgates_TK -> [T, E]. gates_TK are the values before drops; normalised_TE
/// is read by GateKind::softmax only.
template <typename A>
void add_gate_gradient(GateKind kind, const A* gates_TK, const A* dgates_TK, const std::int64_t* ids_TK,
                       const A* normalised_TE, std::int64_t tokens, std::int64_t experts,
                       std::int64_t choices, A* dy_TE, device::StreamHandle stream);

}  // namespace cuda

}  // namespace athanor::kernels
