#include "moe/detail/router_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/bodies/routing.hpp"
#include "kernels/cpu/elements.hpp"

namespace athanor::moe::detail {
namespace {

using kernels::cpu::dispatch;

/// The `capacity` largest of the values offered, largest first; equal ones in the order offered. NaN counts
/// as -infinity.
template <typename A>
struct Best {
  A* value;
  std::int64_t* id;
  std::int64_t capacity;
  std::int64_t size = 0;

  ATHANOR_KERNEL_INLINE void offer(A candidate, std::int64_t candidate_id) {
    if (size == capacity && !(candidate > value[size - 1])) {
      return;
    }
    const A comparable = kernels::bodies::comparable(candidate);
    std::int64_t at = size < capacity ? size++ : size - 1;
    for (; at > 0 && comparable > value[at - 1]; --at) {
      value[at] = value[at - 1];
      id[at] = id[at - 1];
    }
    value[at] = comparable;
    id[at] = candidate_id;
  }

  /// Offers values[first .. last) with their indices as ids.
  ATHANOR_KERNEL_INLINE void offer_range(const A* values, std::int64_t first, std::int64_t last) {
    constexpr std::int64_t lanes = 16;
    std::int64_t i = first;
    for (; i < last && size < capacity; ++i) {
      offer(values[i], i);
    }
    for (; i + lanes <= last; i += lanes) {
      const A bar = value[capacity - 1];
      std::uint32_t above = 0;
      for (std::int64_t lane = 0; lane < lanes; ++lane) {
        above |= static_cast<std::uint32_t>(values[i + lane] > bar) << lane;
      }
      for (; above != 0; above &= above - 1) {
        const std::int64_t candidate = i + std::countr_zero(above);
        offer(values[candidate], candidate);
      }
    }
    for (; i < last; ++i) {
      offer(values[i], i);
    }
  }
};

/// Working memory of choose_experts for one row.
template <typename A>
struct ChoiceScratch {
  explicit ChoiceScratch(const ChoiceShape& shape)
      : selection(static_cast<std::size_t>(shape.experts)),
        best_value(static_cast<std::size_t>(std::max(shape.experts, shape.groups))),
        group_score(static_cast<std::size_t>(shape.groups)),
        group_ids(static_cast<std::size_t>(shape.experts)) {}
  std::vector<A> selection;
  std::vector<A> best_value;
  std::vector<A> group_score;
  std::vector<std::int64_t> group_ids;
};

/// The chosen groups in ascending order in scratch.group_ids; returns how many.
template <typename A>
std::int64_t choose_groups(const A* selection, const ChoiceShape& shape, ChoiceScratch<A>& scratch) {
  const std::int64_t group_size = shape.experts / shape.groups;
  const std::int64_t summed = kernels::bodies::summed_choices(shape);
  for (std::int64_t group = 0; group < shape.groups; ++group) {
    Best<A> best{scratch.best_value.data(), scratch.group_ids.data(), summed};
    best.offer_range(selection, group * group_size, (group + 1) * group_size);
    A sum = 0;
    for (std::int64_t i = 0; i < best.size; ++i) {
      sum += best.value[i];
    }
    scratch.group_score[static_cast<std::size_t>(group)] = sum;
  }
  Best<A> best{scratch.best_value.data(), scratch.group_ids.data(), shape.group_choices};
  best.offer_range(scratch.group_score.data(), 0, shape.groups);
  // Ascending, so that equal experts of different groups keep the order of their ids.
  std::sort(scratch.group_ids.begin(), scratch.group_ids.begin() + best.size);
  return best.size;
}

struct ChooseAmongAll {
  template <typename A>
  ATHANOR_KERNEL_INLINE static void run(const A* selection, std::int64_t experts, std::int64_t choices,
                                        A* best_value, std::int64_t* ids_K) {
    Best<A> best{best_value, ids_K, choices};
    best.offer_range(selection, 0, experts);
  }
};

struct AddBias {
  template <typename A>
  ATHANOR_KERNEL_INLINE static void run(const A* __restrict scores, const A* __restrict bias,
                                        std::int64_t experts, A* __restrict selection) {
    for (std::int64_t i = 0; i < experts; ++i) {
      selection[i] = scores[i] + bias[i];
    }
  }
};

template <typename A>
void choose_row(const A* scores_E, const A* bias_E, const ChoiceShape& shape, ChoiceScratch<A>& scratch,
                std::int64_t* ids_K) {
  const A* selection = scores_E;
  if (bias_E != nullptr) {
    dispatch<AddBias>(scores_E, bias_E, shape.experts, scratch.selection.data());
    selection = scratch.selection.data();
  }
  if (!kernels::bodies::has_limited_groups(shape)) {
    dispatch<ChooseAmongAll>(selection, shape.experts, shape.choices, scratch.best_value.data(), ids_K);
    return;
  }
  const std::int64_t chosen_groups = choose_groups(selection, shape, scratch);
  const std::int64_t group_size = shape.experts / shape.groups;
  Best<A> best{scratch.best_value.data(), ids_K, shape.choices};
  for (std::int64_t g = 0; g < chosen_groups; ++g) {
    const std::int64_t first = scratch.group_ids[static_cast<std::size_t>(g)] * group_size;
    best.offer_range(selection, first, first + group_size);
  }
}

struct ScoreSums {
  /// One row: sums += s', returns <s', y>.
  template <typename A>
  ATHANOR_KERNEL_INLINE static void run(const A* __restrict y, const A* __restrict normalised,
                                        std::int64_t experts, double* __restrict sums, A* mean_y) {
    for (std::int64_t i = 0; i < experts; ++i) {
      sums[i] += static_cast<double>(normalised[i]);
    }
    *mean_y = kernels::cpu::dot<A>(normalised, y, experts);
  }
};

struct BalanceGradient {
  template <typename A>
  ATHANOR_KERNEL_INLINE static void run(const A* normalised_TE, const A* coefficients,
                                        std::int64_t coefficient_rows, std::int64_t tokens,
                                        std::int64_t tokens_per_sequence, std::int64_t experts, A scale,
                                        A* dy_TE) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const A* a = coefficients + (t / tokens_per_sequence) % coefficient_rows * experts;
      const A* s = normalised_TE + t * experts;
      A* dy = dy_TE + t * experts;
      const A mean = kernels::cpu::dot<A>(a, s, experts);
      for (std::int64_t i = 0; i < experts; ++i) {
        dy[i] += kernels::bodies::balance_gradient(scale, s[i], a[i], mean);
      }
    }
  }
};

}  // namespace

template <typename A>
void choose_experts(const A* scores_TE, const A* bias_E, std::int64_t tokens, const ChoiceShape& shape,
                    std::int64_t* ids_TK) {
  ChoiceScratch<A> scratch(shape);
  for (std::int64_t t = 0; t < tokens; ++t) {
    choose_row(scores_TE + t * shape.experts, bias_E, shape, scratch, ids_TK + t * shape.choices);
  }
}

template <typename A>
void normalised_gates(const A* y_TE, const std::int64_t* ids_TK, std::int64_t tokens, std::int64_t experts,
                      std::int64_t choices, A* gates_TK) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const A* y = y_TE + t * experts;
    const std::int64_t* ids = ids_TK + t * choices;
    A* gates = gates_TK + t * choices;
    A largest = y[ids[0]];
    for (std::int64_t k = 1; k < choices; ++k) {
      largest = std::max(largest, y[ids[k]]);
    }
    A sum = 0;
    for (std::int64_t k = 0; k < choices; ++k) {
      gates[k] = std::exp(y[ids[k]] - largest);
      sum += gates[k];
    }
    for (std::int64_t k = 0; k < choices; ++k) {
      gates[k] /= sum;
    }
  }
}

template <typename A>
RouterSums router_sums(const A* y_TE, const A* normalised_TE, std::int64_t tokens,
                       std::int64_t tokens_per_sequence, std::int64_t experts, double* score_sums_BE,
                       A* lse_T) {
  RouterSums sums;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const A* y = y_TE + t * experts;
    const A* normalised = normalised_TE + t * experts;
    A mean_y = 0;
    dispatch<ScoreSums>(y, normalised, experts, score_sums_BE + t / tokens_per_sequence * experts, &mean_y);
    // The most probable expert's s' is at least 1/E: its logarithm is exact enough.
    const std::int64_t top = std::max_element(y, y + experts) - y;
    const A lse = y[top] - std::log(normalised[top]);
    lse_T[t] = lse;
    sums.entropy += static_cast<double>(lse) - static_cast<double>(mean_y);
    sums.z += static_cast<double>(lse) * static_cast<double>(lse);
  }
  return sums;
}

template <typename A>
void add_balance_gradient(const A* normalised_TE, const A* coefficients, std::int64_t coefficient_rows,
                          std::int64_t tokens, std::int64_t tokens_per_sequence, std::int64_t experts,
                          A scale, A* dy_TE) {
  dispatch<BalanceGradient>(normalised_TE, coefficients, coefficient_rows, tokens, tokens_per_sequence,
                            experts, scale, dy_TE);
}

template <typename A>
void add_gate_gradient(GateKind kind, const A* gates_TK, const A* dgates_TK, const std::int64_t* ids_TK,
                       const A* normalised_TE, std::int64_t tokens, std::int64_t experts,
                       std::int64_t choices, A* dy_TE) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const A* gates = gates_TK + t * choices;
    const A* dgates = dgates_TK + t * choices;
    const std::int64_t* ids = ids_TK + t * choices;
    A* dy = dy_TE + t * experts;
    A mean = 0;
    for (std::int64_t k = 0; k < choices; ++k) {
      mean += gates[k] * dgates[k];
    }
    const A subtracted = kind == GateKind::normalised ? mean : A(0);
    for (std::int64_t k = 0; k < choices; ++k) {
      dy[ids[k]] += gates[k] * (dgates[k] - subtracted);
    }
    for (std::int64_t i = 0; kind == GateKind::softmax && i < experts; ++i) {
      dy[i] -= normalised_TE[t * experts + i] * mean;
    }
  }
}

#define ATHANOR_INSTANTIATE(A)                                                                               \
  template void choose_experts<A>(const A*, const A*, std::int64_t, const ChoiceShape&, std::int64_t*);      \
  template void normalised_gates<A>(const A*, const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, \
                                    A*);                                                                     \
  template RouterSums router_sums<A>(const A*, const A*, std::int64_t, std::int64_t, std::int64_t, double*,  \
                                     A*);                                                                    \
  template void add_balance_gradient<A>(const A*, const A*, std::int64_t, std::int64_t, std::int64_t,        \
                                        std::int64_t, A, A*);                                                \
  template void add_gate_gradient<A>(GateKind, const A*, const A*, const std::int64_t*, const A*,            \
                                     std::int64_t, std::int64_t, std::int64_t, A*);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::moe::detail
