// The router's passes over [T, E]: choice, gates, statistics and the gradient of the logits.
//
// Legend: T tokens of B sequences in (sequence, position) order, E experts, K choices. y are the logits whose
// softmax over all experts is s' (the logits x for softmax scores, log sigmoid(x) for sigmoid scores). A is
// f32 or f64.
#pragma once

#include <cstdint>

#include "kernels/routing.hpp"

namespace athanor::moe::detail {

using kernels::ChoiceShape;
using kernels::GateKind;
using kernels::RouterSums;

/// ids[t] = the K experts of the largest scores[t, i] + bias[i], best first; equal values: the lower id
/// first. With limited groups only experts of the best groups are candidates: a group's score is the sum of
/// its max(1, K / group_choices) largest values. bias may be nullptr. NaN counts as -infinity, so ids are
/// always valid.
template <typename A>
void choose_experts(const A* scores_TE, const A* bias_E, std::int64_t tokens, const ChoiceShape& shape,
                    std::int64_t* ids_TK);

/// gates[t] = softmax of y over the chosen experts: s_i / sum of the chosen s, exact also where s underflows.
template <typename A>
void normalised_gates(const A* y_TE, const std::int64_t* ids_TK, std::int64_t tokens, std::int64_t experts,
                      std::int64_t choices, A* gates_TK);

/// Adds s' to score_sums[sequence, i] and writes lse[t] = logsumexp_i y[t, i] (from s' and y, without another
/// exp).
template <typename A>
RouterSums router_sums(const A* y_TE, const A* normalised_TE, std::int64_t tokens,
                       std::int64_t tokens_per_sequence, std::int64_t experts, double* score_sums_BE,
                       A* lse_T);

/// dy[t, i] += scale * s'_i (a_i - sum_j a_j s'_j), with a = coefficients[sequence % coefficient_rows].
template <typename A>
void add_balance_gradient(const A* normalised_TE, const A* coefficients, std::int64_t coefficient_rows,
                          std::int64_t tokens, std::int64_t tokens_per_sequence, std::int64_t experts,
                          A scale, A* dy_TE);

/// dy += the gradient of the gates: dgates_TK -> [T, E]. gates_TK are the values before drops; normalised_TE
/// is read by GateKind::softmax only.
template <typename A>
void add_gate_gradient(GateKind kind, const A* gates_TK, const A* dgates_TK, const std::int64_t* ids_TK,
                       const A* normalised_TE, std::int64_t tokens, std::int64_t experts,
                       std::int64_t choices, A* dy_TE);

}  // namespace athanor::moe::detail
