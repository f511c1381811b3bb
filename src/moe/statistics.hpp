// What a sparse layer reports of one step, and the state of balancing that outlives it.
//
// Legend: L sparse layers, E experts.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace athanor::moe {

/// Sums over this rank's routed tokens of one step, filled by forward passes (a recomputed one adds nothing).
struct LayerStatistics {
  at::Tensor counts_E;       ///< int64: choices of each expert (after bias and group limit, before drops)
  at::Tensor score_sum_E;    ///< f64: sum_t s'_{t,i}
  double z_sum = 0.0;        ///< sum_t (logsumexp_i x_{t,i})^2
  double entropy_sum = 0.0;  ///< sum_t entropy of s'_t, nats
  /// Sum over sequences of (E/k) sum_i f_i P_i of that sequence, where P_i is this rank's share of the
  /// sequence's: the sum over ranks is the whole. Filled when `sequence` is in use.
  double sequence_sum = 0.0;
  std::int64_t num_sequences = 0;  ///< sequences in sequence_sum, counted on tp rank 0 only
  std::int64_t dropped = 0;        ///< choices dropped by capacity
};

/// Balancing state of the model: part of the checkpoint.
struct BalanceState {
  at::Tensor
      previous_counts_LE;  ///< int64 counts c_i of the previous global batch; all zero before the first step
  std::int64_t previous_tokens = 0;  ///< T of the previous global batch; 0 before the first step
  at::Tensor bias_PE;  ///< accumulation type: b_i per parameter set; zero unless balance has `bias`
};

}  // namespace athanor::moe
