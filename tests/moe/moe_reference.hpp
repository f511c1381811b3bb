// A sparse layer written out: loops over tokens and experts in f64, gradients by autograd. What the fast one
// must equal.
//
// Legend: B sequences, S positions, D hidden width, E experts, K choices, F inner width.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include <ATen/ATen.h>

#include "moe/moe_options.hpp"

namespace athanor::tests {

struct ReferenceWeights {
  at::Tensor router;          ///< [E, D]
  at::Tensor gate_up;         ///< [E, 2F, D]
  at::Tensor down;            ///< [E, D, F]
  at::Tensor shared_gate_up;  ///< [2, F', D] or undefined
  at::Tensor shared_down;     ///< [D, F']
};

struct ReferenceInputs {
  at::Tensor x_BSD;        ///< real positions only
  at::Tensor frequency_E;  ///< f^ of batch counts, or undefined
  at::Tensor bias_E;
  double valid_labels = 0;
  bool want_aux = true;
  std::vector<std::vector<std::int64_t>> forced;  ///< [B*S][K] or empty
};

struct ReferenceResult {
  at::Tensor y_BSD;
  at::Tensor aux;                              ///< scalar; undefined: none
  std::vector<std::vector<std::int64_t>> ids;  ///< [B*S][K]
  std::vector<std::vector<bool>> kept;
  at::Tensor counts_E;  ///< int64
  at::Tensor score_sum_E;
  double z_sum = 0;
  double entropy_sum = 0;
  double sequence_sum = 0;
  std::int64_t dropped = 0;
};

inline std::vector<std::int64_t> reference_choice(const std::vector<double>& selection,
                                                  const moe::MoeOptions& options) {
  const auto E = options.num_experts;
  const auto best_of = [&](std::vector<std::int64_t> candidates, std::int64_t count) {
    std::stable_sort(candidates.begin(), candidates.end(), [&](std::int64_t a, std::int64_t b) {
      return selection[static_cast<std::size_t>(a)] > selection[static_cast<std::size_t>(b)];
    });
    candidates.resize(static_cast<std::size_t>(count));
    return candidates;
  };
  std::vector<std::int64_t> candidates(static_cast<std::size_t>(E));
  std::iota(candidates.begin(), candidates.end(), 0);
  if (options.group_top_k > 0 && options.group_top_k < options.groups) {
    const std::int64_t size = E / options.groups;
    const std::int64_t summed =
        std::min(size, std::max<std::int64_t>(1, options.top_k / options.group_top_k));
    std::vector<std::pair<double, std::int64_t>> groups;
    for (std::int64_t g = 0; g < options.groups; ++g) {
      std::vector<std::int64_t> members(candidates.begin() + g * size, candidates.begin() + (g + 1) * size);
      double score = 0;
      for (const std::int64_t i : best_of(members, summed)) {
        score += selection[static_cast<std::size_t>(i)];
      }
      groups.emplace_back(-score, g);
    }
    std::sort(groups.begin(), groups.end());
    std::set<std::int64_t> allowed;
    for (std::int64_t g = 0; g < options.group_top_k; ++g) {
      allowed.insert(groups[static_cast<std::size_t>(g)].second);
    }
    std::erase_if(candidates, [&](std::int64_t i) { return !allowed.contains(i / size); });
  }
  return best_of(candidates, options.top_k);
}

inline at::Tensor reference_swiglu_ffn(const at::Tensor& x_D, const at::Tensor& gate_up,
                                       const at::Tensor& down) {
  const std::int64_t ffn = gate_up.size(0) / 2;
  const at::Tensor both = at::mv(gate_up, x_D);
  const at::Tensor gate = both.narrow(0, 0, ffn);
  return at::mv(down, gate * at::sigmoid(gate) * both.narrow(0, ffn, ffn));
}

/// Keeps choices of one sequence by sorting what each expert was offered.
inline void reference_drops(const std::vector<std::vector<std::int64_t>>& ids,
                            const std::vector<std::vector<double>>& scores, std::int64_t first,
                            std::int64_t seq, const moe::MoeOptions& options,
                            std::vector<std::vector<bool>>& kept) {
  const auto capacity =
      static_cast<std::size_t>(std::ceil(options.capacity_factor * static_cast<double>(seq * options.top_k) /
                                         static_cast<double>(options.num_experts)));
  for (std::int64_t expert = 0; expert < options.num_experts; ++expert) {
    std::vector<std::tuple<double, std::int64_t, std::int64_t>> offered;  // key, token, choice
    for (std::int64_t t = first; t < first + seq; ++t) {
      for (std::int64_t k = 0; k < options.top_k; ++k) {
        if (ids[static_cast<std::size_t>(t)][static_cast<std::size_t>(k)] == expert) {
          const double score = scores[static_cast<std::size_t>(t)][static_cast<std::size_t>(k)];
          offered.emplace_back(options.drop == moe::DropPolicy::score ? -score : 0.0, t, k);
        }
      }
    }
    std::sort(offered.begin(), offered.end());
    for (std::size_t i = 0; i < offered.size(); ++i) {
      const auto [key, t, k] = offered[i];
      kept[static_cast<std::size_t>(t)][static_cast<std::size_t>(k)] = i < capacity;
    }
  }
}

inline ReferenceResult reference_moe(const moe::MoeOptions& options, const ReferenceWeights& weights,
                                     const ReferenceInputs& inputs) {
  const std::int64_t B = inputs.x_BSD.size(0), S = inputs.x_BSD.size(1), D = inputs.x_BSD.size(2);
  const std::int64_t E = options.num_experts, K = options.top_k, T = B * S;
  const double mu = static_cast<double>(K) / static_cast<double>(E);
  const at::Tensor x_TD = inputs.x_BSD.reshape({T, D});
  ReferenceResult result;
  result.kept.assign(static_cast<std::size_t>(T), std::vector<bool>(static_cast<std::size_t>(K), true));
  std::vector<at::Tensor> scores(static_cast<std::size_t>(T)), shares(static_cast<std::size_t>(T)),
      z(static_cast<std::size_t>(T));
  std::vector<std::vector<double>> chosen_scores;
  at::Tensor counts_BE = at::zeros({B, E}, at::kDouble);
  for (std::int64_t t = 0; t < T; ++t) {
    const auto i = static_cast<std::size_t>(t);
    const at::Tensor logits = at::mv(weights.router, x_TD[t]);
    z[i] = at::logsumexp(logits, 0);
    scores[i] = options.score == moe::RouterScore::softmax ? at::softmax(logits, 0) : at::sigmoid(logits);
    shares[i] = scores[i] / scores[i].sum();
    const at::Tensor selection =
        (inputs.bias_E.defined() ? scores[i] + inputs.bias_E : scores[i]).detach().contiguous();
    const std::vector<double> values(selection.data_ptr<double>(), selection.data_ptr<double>() + E);
    result.ids.push_back(inputs.forced.empty() ? reference_choice(values, options) : inputs.forced[i]);
    chosen_scores.emplace_back();
    for (const std::int64_t id : result.ids.back()) {
      counts_BE[t / S][id] += 1;
      chosen_scores.back().push_back(scores[i][id].item<double>());
    }
  }
  if (options.capacity_factor > 0) {
    for (std::int64_t b = 0; b < B; ++b) {
      reference_drops(result.ids, chosen_scores, b * S, S, options, result.kept);
    }
  }
  std::vector<at::Tensor> rows;
  at::Tensor score_sums_BE = at::zeros({B, E}, at::kDouble);
  at::Tensor z_term = at::zeros({}, at::kDouble);
  std::vector<at::Tensor> share_sums(static_cast<std::size_t>(B), at::zeros({E}, at::kDouble));
  for (std::int64_t t = 0; t < T; ++t) {
    const auto i = static_cast<std::size_t>(t);
    at::Tensor chosen_sum = at::zeros({}, at::kDouble);
    for (const std::int64_t id : result.ids[i]) {
      chosen_sum = chosen_sum + scores[i][id];
    }
    at::Tensor y = at::zeros({D}, at::kDouble);
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int64_t id = result.ids[i][static_cast<std::size_t>(k)];
      if (!result.kept[i][static_cast<std::size_t>(k)]) {
        ++result.dropped;
        continue;
      }
      const at::Tensor gate = options.normalize_top_k ? scores[i][id] / chosen_sum : scores[i][id];
      y = y + gate * reference_swiglu_ffn(x_TD[t], weights.gate_up[id], weights.down[id]);
    }
    if (weights.shared_gate_up.defined()) {
      y = y + reference_swiglu_ffn(x_TD[t], weights.shared_gate_up.reshape({-1, D}), weights.shared_down);
    }
    rows.push_back(y);
    share_sums[static_cast<std::size_t>(t / S)] = share_sums[static_cast<std::size_t>(t / S)] + shares[i];
    z_term = z_term + z[i].square();
    result.entropy_sum -= (shares[i] * shares[i].log()).sum().item<double>();
  }
  result.y_BSD = at::stack(rows).reshape({B, S, D});
  result.counts_E = counts_BE.sum(0).to(at::kLong);
  const at::Tensor share_sum_E = at::stack(share_sums).sum(0);
  result.score_sum_E = share_sum_E.detach();
  result.z_sum = z_term.item<double>();

  const double N = inputs.valid_labels, tokens = static_cast<double>(T), alpha = options.balance_weight;
  at::Tensor aux = at::zeros({}, at::kDouble);
  bool any = false;
  const at::Tensor frequency =
      options.balance_counts == moe::BalanceCounts::batch ? inputs.frequency_E : counts_BE.sum(0) / tokens;
  if (options.uses(moe::BalanceKind::squared) && frequency.defined()) {
    aux = aux + N * (alpha * 2.0 * (frequency / mu - 1.0) * share_sum_E / tokens).sum();
    any = true;
  }
  if (options.uses(moe::BalanceKind::switch_loss) && frequency.defined()) {
    aux = aux + N * alpha * (frequency / mu * share_sum_E / tokens).sum();
    any = true;
  }
  if (options.uses(moe::BalanceKind::sequence)) {
    for (std::int64_t b = 0; b < B; ++b) {
      const double seq = static_cast<double>(S);
      const at::Tensor value =
          (counts_BE[b] / seq / mu * share_sums[static_cast<std::size_t>(b)] / seq).sum();
      aux = aux + N * alpha * value / static_cast<double>(B);
      result.sequence_sum += value.item<double>();
    }
    any = true;
  }
  if (options.z_weight > 0) {
    aux = aux + N * options.z_weight * z_term / tokens;
    any = true;
  }
  if (any && inputs.want_aux) {
    result.aux = aux;
  }
  return result;
}

}  // namespace athanor::tests
