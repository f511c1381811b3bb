// The balance losses and the router's z-loss: constants of their gradients, and values for reporting.
//
// Legend: E experts, k choices, mu = k/E, T tokens, c_i choices of expert i, f_i = c_i/T, s' the normalised
// scores, P_i = (1/T) sum_t s'_{t,i}, alpha the balance weight, N valid labels of the global batch. B
// sequences of the micro-batch, S positions of one. Every gradient is that of sum_{t,i} a_i s'_{t,i} / T with
// constants a_i; f^ is what they use for f (BalanceCounts).
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moe/moe_options.hpp"
#include "moe/routing.hpp"
#include "moe/statistics.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::moe {

/// a_i of `squared`: alpha * 2 (f^_i / mu - 1), from (alpha/E) sum_i (f_i/mu - 1)^2 with d f_i := d(k P_i).
std::vector<double> squared_constants(const std::vector<double>& frequency_E, const MoeOptions& options);
/// a_i of `switch`: alpha * (E/k) f^_i. Fedus et al. 2021, eq. 4, for any k.
std::vector<double> switch_constants(const std::vector<double>& frequency_E, const MoeOptions& options);

/// What one micro-batch adds to the objective, as constants: this rank's share of N * (balance + z) is
///   sum_t sum_i coefficients[row of t, i] * s'_{t,i} + z_coefficient * sum_t z_t^2.
struct BalanceTerms {
  /// [1, E] (the same for all tokens) or [B, E], in f64; undefined: no balance gradient.
  at::Tensor coefficients;
  double z_coefficient = 0.0;
  /// int64 [B, E]: choices in the whole sequences (summed over tp); undefined unless `sequence` is in use.
  at::Tensor sequence_counts_BE;
  bool any() const { return coefficients.defined() || z_coefficient != 0.0; }
};

/// The balance losses of one layer.
class BalanceLoss {
 public:
  /// `grid` must outlive this.
  BalanceLoss(const MoeOptions& options, const parallel::ProcessGrid& grid);

  /// Constants for a micro-batch whose choices of this rank's tokens are counted in counts_BE (int64).
  /// Collective over tp for `sequence` (an integer all-reduce), and over the role for `squared` and `switch`
  /// with BalanceCounts::micro_step. Which collectives run depends on the options, want_aux and whether
  /// statistics are wanted, never on data.
  BalanceTerms terms(const at::Tensor& counts_BE, std::int64_t tokens, const MoeContext& context) const;

 private:
  /// f^ of squared and switch; empty: no gradient yet.
  std::vector<double> frequency(const at::Tensor& counts_BE, std::int64_t tokens,
                                const MoeContext& context) const;

  MoeOptions options_;
  const parallel::ProcessGrid* grid_;
};

/// Values of one layer over one global batch, of the current f and P. Losses are unweighted.
struct BalanceValues {
  double squared = 0.0;        ///< (1/E) sum_i (f_i/mu - 1)^2
  double switch_loss = 0.0;    ///< (E/k) sum_i f_i P_i; 1 when balanced
  double sequence = 0.0;       ///< mean over sequences of (E/k) sum_i f_i P_i; 0 unless `sequence` is in use
  double z = 0.0;              ///< mean over tokens of logsumexp^2
  double use_std = 0.0;        ///< standard deviation over experts of f_i/mu
  double use_max = 0.0;        ///< largest f_i/mu
  double use_min = 0.0;        ///< smallest f_i/mu
  double entropy = 0.0;        ///< mean over tokens of the entropy of s', nats
  double dropped_share = 0.0;  ///< choices dropped by capacity / all choices

  /// Sum of the unweighted losses of the kinds in use (z and `bias` have no part in it).
  double balance(const MoeOptions& options) const;
  /// What the objective counts: alpha * balance + c_z * z.
  double weighted(const MoeOptions& options) const;
};

/// Values from statistics summed over the ranks of the role (counts, score sums and all scalars); `tokens` is
/// T of the same global batch. All zero when tokens is 0.
BalanceValues balance_values(const LayerStatistics& statistics, std::int64_t tokens,
                             const MoeOptions& options);

/// Zeroed statistics for a layer of `num_experts` experts.
LayerStatistics make_statistics(std::int64_t num_experts);

}  // namespace athanor::moe
