// The router's passes, one token for each team.
#pragma once

#include "kernels/bodies/order.hpp"
#include "kernels/bodies/part.hpp"
#include "kernels/routing.hpp"

namespace athanor::kernels::bodies {

/// Largest values that are summed for a group's score.
ATHANOR_BODY std::int64_t summed_choices(const ChoiceShape& shape) {
  const std::int64_t group_size = shape.experts / shape.groups;
  const std::int64_t wanted = shape.choices / shape.group_choices;
  const std::int64_t summed = wanted > 1 ? wanted : 1;
  return summed < group_size ? summed : group_size;
}

/// Whether a token may choose from some groups only.
ATHANOR_BODY bool has_limited_groups(const ChoiceShape& shape) {
  return shape.group_choices != 0 && shape.group_choices != shape.groups;
}

template <typename A>
struct ChooseExpertsRow {
  static constexpr int lanes = warp_lanes;
  const A* scores_TE;
  const A* bias_E;
  ChoiceShape shape;
  std::int64_t* ids_TK;

  /// The groups' scores.
  std::size_t scratch_bytes() const {
    return has_limited_groups(shape) ? static_cast<std::size_t>(shape.groups) * sizeof(A) : 0;
  }

  ATHANOR_BODY Candidate<A> expert(const A* scores, std::int64_t i) const {
    return {comparable(bias_E == nullptr ? scores[i] : scores[i] + bias_E[i]), i};
  }

  /// Sum of the best of a group, best first.
  ATHANOR_BODY A group_score(const A* scores, std::int64_t group) const {
    const std::int64_t size = shape.experts / shape.groups;
    Candidate<A> last{A(0), -1};
    A sum = 0;
    for (std::int64_t n = 0; n < summed_choices(shape); ++n) {
      Candidate<A> best{A(0), -1};
      for (std::int64_t i = group * size; i < (group + 1) * size; ++i) {
        const Candidate<A> candidate = expert(scores, i);
        if (last.id < 0 || comes_before(last, candidate)) {
          best = first_of(best, candidate);
        }
      }
      sum += best.value;
      last = best;
    }
    return sum;
  }

  /// The last of the best groups; those not behind it may be chosen from.
  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY Candidate<A> last_group(const Team& team, const A* scores) const {
    A* group_scores = static_cast<A*>(team.scratch());
    team.for_each(shape.groups,
                  [&](std::int64_t group) { group_scores[group] = group_score(scores, group); });
    team.sync();
    Candidate<A> last{A(0), -1};
    for (std::int64_t n = 0; n < shape.group_choices; ++n) {
      last = next_after<A>(team, shape.groups, last, [&](std::int64_t group) {
        return Candidate<A>{comparable(group_scores[group]), group};
      });
    }
    return last;
  }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t t) const {
    const A* scores = scores_TE + t * shape.experts;
    const std::int64_t group_size = shape.experts / shape.groups;
    const bool limited = has_limited_groups(shape);
    const Candidate<A> bar = limited ? last_group(team, scores) : Candidate<A>{A(0), -1};
    const A* group_scores = static_cast<const A*>(team.scratch());
    Candidate<A> last{A(0), -1};
    for (std::int64_t k = 0; k < shape.choices; ++k) {
      last = next_after<A>(team, shape.experts, last, [&](std::int64_t i) {
        const std::int64_t group = i / group_size;
        const bool allowed =
            !limited || !comes_before(bar, Candidate<A>{comparable(group_scores[group]), group});
        return allowed ? expert(scores, i) : Candidate<A>{A(0), -1};
      });
      team.once([&] { ids_TK[t * shape.choices + k] = last.id; });
    }
  }
};

template <typename A>
struct NormalisedGatesRow {
  static constexpr int lanes = warp_lanes;
  const A* y_TE;
  const std::int64_t* ids_TK;
  std::int64_t experts;
  std::int64_t choices;
  A* gates_TK;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t t) const {
    const A* y = y_TE + t * experts;
    const std::int64_t* ids = ids_TK + t * choices;
    const A largest =
        team_maximum<A>(team, choices, minus_infinity<A>(), [&](std::int64_t k) { return y[ids[k]]; });
    const A sum = team_sum<A>(team, choices, [&](std::int64_t k) { return std::exp(y[ids[k]] - largest); });
    team.for_each(choices,
                  [&](std::int64_t k) { gates_TK[t * choices + k] = std::exp(y[ids[k]] - largest) / sum; });
  }
};

/// Writes a token's lse and entropy.
template <typename A>
struct RouterStatisticsRow {
  static constexpr int lanes = warp_lanes;
  const A* y_TE;
  const A* normalised_TE;
  std::int64_t experts;
  A* lse_T;
  double* entropy_T;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t t) const {
    const A* y = y_TE + t * experts;
    const A* normalised = normalised_TE + t * experts;
    const A mean_y = team_sum<A>(team, experts, [&](std::int64_t i) { return normalised[i] * y[i]; });
    const Candidate<A> top = next_after<A>(team, experts, Candidate<A>{A(0), -1}, [&](std::int64_t i) {
      return Candidate<A>{comparable(y[i]), i};
    });
    team.once([&] {
      // The most probable expert's s' is at least 1/E: its logarithm is exact enough.
      const A lse = y[top.id] - std::log(normalised[top.id]);
      lse_T[t] = lse;
      entropy_T[t] = static_cast<double>(lse) - static_cast<double>(mean_y);
    });
  }
};

/// *sums += those of all tokens: one team for all.
template <typename A>
struct RouterSumsOfTokens {
  static constexpr int lanes = block_lanes;
  const A* lse_T;
  const double* entropy_T;
  std::int64_t tokens;
  RouterSums* sums;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t /*row*/) const {
    const double entropy = team_sum<double>(team, tokens, [&](std::int64_t t) { return entropy_T[t]; });
    const double z = team_sum<double>(team, tokens, [&](std::int64_t t) {
      return static_cast<double>(lse_T[t]) * static_cast<double>(lse_T[t]);
    });
    team.once([&] {
      sums->entropy += entropy;
      sums->z += z;
    });
  }
};

/// score_sums[sequence, i] += s' of the sequence's tokens; its parts are the sequences (columns.hpp).
template <typename A>
struct ScoreSumColumn {
  using Sum = double;
  const A* normalised_TE;
  std::int64_t experts;
  double* score_sums_BE;
  ATHANOR_BODY double term(std::int64_t t, std::int64_t i) const {
    return static_cast<double>(normalised_TE[t * experts + i]);
  }
  ATHANOR_BODY void finish(std::int64_t sequence, std::int64_t i, double sum) const {
    score_sums_BE[sequence * experts + i] += sum;
  }
};

/// s' (a - mean), times the scale: what a balance loss adds to dy.
template <typename A>
ATHANOR_BODY A balance_gradient(A scale, A normalised, A coefficient, A mean) {
  return scale * normalised * (coefficient - mean);
}

template <typename A>
struct BalanceGradientRow {
  static constexpr int lanes = warp_lanes;
  const A* normalised_TE;
  const A* coefficients;
  std::int64_t coefficient_rows;
  std::int64_t tokens_per_sequence;
  std::int64_t experts;
  A scale;
  A* dy_TE;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t t) const {
    const A* a = coefficients + (t / tokens_per_sequence) % coefficient_rows * experts;
    const A* s = normalised_TE + t * experts;
    const A mean = team_sum<A>(team, experts, [&](std::int64_t i) { return a[i] * s[i]; });
    team.for_each(experts, [&](std::int64_t i) {
      dy_TE[t * experts + i] += balance_gradient(scale, s[i], a[i], mean);
    });
  }
};

template <typename A>
struct GateGradientRow {
  static constexpr int lanes = warp_lanes;
  GateKind kind;
  const A* gates_TK;
  const A* dgates_TK;
  const std::int64_t* ids_TK;
  const A* normalised_TE;
  std::int64_t experts;
  std::int64_t choices;
  A* dy_TE;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t t) const {
    const A* gates = gates_TK + t * choices;
    const A* dgates = dgates_TK + t * choices;
    A* dy = dy_TE + t * experts;
    A mean = 0;
    for (std::int64_t k = 0; k < choices; ++k) {
      mean += gates[k] * dgates[k];
    }
    const A subtracted = kind == GateKind::normalised ? mean : A(0);
    team.for_each(
        choices, [&](std::int64_t k) { dy[ids_TK[t * choices + k]] += gates[k] * (dgates[k] - subtracted); });
    if (kind == GateKind::softmax) {
      team.sync();
      team.for_each(experts, [&](std::int64_t i) { dy[i] -= normalised_TE[t * experts + i] * mean; });
    }
  }
};

}  // namespace athanor::kernels::bodies
