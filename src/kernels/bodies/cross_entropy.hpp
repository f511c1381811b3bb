// Softmax cross-entropy, one row of logits for each team.
#pragma once

#include "kernels/bodies/team.hpp"
#include "kernels/cross_entropy.hpp"

namespace athanor::kernels::bodies {

/// Largest of a row, -infinity of an empty one; NaN are passed over.
ATHANOR_TEAM_BODY
template <typename A, typename Team, typename T>
ATHANOR_BODY A row_maximum(const Team& team, const T* x, std::int64_t n) {
  return team_maximum<A>(team, n, minus_infinity<A>(), [&](std::int64_t i) { return A(load(x[i])); });
}

/// Sum of e^((x - base) / t) over a row.
ATHANOR_TEAM_BODY
template <typename A, typename Team, typename T>
ATHANOR_BODY A row_sum_exp(const Team& team, const T* x, std::int64_t n, A base, A inverse_t) {
  return team_sum<A>(team, n, [&](std::int64_t i) { return fast_exp((A(load(x[i])) - base) * inverse_t); });
}

template <typename T>
struct SoftmaxStatisticsRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* logits;
  const std::int64_t* labels;
  std::int64_t vocab;
  SoftmaxStatistics<A>* statistics;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    const T* row = logits + r * vocab;
    const A largest = row_maximum<A>(team, row, vocab);
    const A sum = row_sum_exp<A>(team, row, vocab, largest, A(1));
    team.once([&] {
      const bool here = labels[r] >= 0 && labels[r] < vocab;
      statistics[r] = SoftmaxStatistics<A>{largest, sum, here ? A(load(row[labels[r]])) : A(0)};
    });
  }
};

/// One row's statistics of `slices` slices, [slices, rows], joined in their order.
template <typename A>
struct JoinSoftmaxRow {
  const SoftmaxStatistics<A>* statistics;
  std::int64_t slices;
  std::int64_t rows;
  const bool* ignored;
  A* maximum;
  A* inverse_sum;
  A* loss;

  ATHANOR_BODY void operator()(std::int64_t r) const {
    A largest = statistics[r].maximum;
    for (std::int64_t slice = 1; slice < slices; ++slice) {
      const A other = statistics[slice * rows + r].maximum;
      largest = largest < other ? other : largest;
    }
    A sum = 0;
    A target = 0;
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      const SoftmaxStatistics<A>& part = statistics[slice * rows + r];
      sum += part.sum_exp * fast_exp(part.maximum - largest);
      target += part.target;
    }
    // A row with a NaN or an infinity keeps it: fast_log takes normal numbers only.
    const A log_sum = sum <= largest_finite<A>() ? fast_log(sum) : sum;
    maximum[r] = largest;
    inverse_sum[r] = ignored[r] ? A(0) : A(1) / sum;
    loss[r] = ignored[r] ? A(0) : largest - target + log_sum;
  }
};

/// d CE of one logit without the label's -1: probability times the gradient's scale.
template <typename T, typename A>
ATHANOR_BODY A scaled_probability(T logit, A maximum, A scale) {
  return fast_exp(A(load(logit)) - maximum) * scale;
}

template <typename T>
struct CrossEntropyBackwardRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  T* logits;
  const std::int64_t* labels;
  const A* maximum;
  const A* inverse_sum;
  std::int64_t vocab;
  A gradient_scale;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    T* row = logits + r * vocab;
    const A largest = maximum[r];
    const A scale = inverse_sum[r] * gradient_scale;
    const std::int64_t label = labels[r];
    team.for_each(vocab, [&](std::int64_t c) {
      // The label's probability stays in the accumulation type until 1 is subtracted.
      const A target = c == label ? gradient_scale : A(0);
      row[c] = store<T>(scale == A(0) ? A(0) : scaled_probability(row[c], largest, scale) - target);
    });
  }
};

}  // namespace athanor::kernels::bodies
