// The sums over a role that close a step: loss, routing counts, balance statistics, bytes sent.
//
// Legend: L sparse layers, E experts.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/transformer.hpp"
#include "train/step_metrics.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

/// Packs one rank's contributions, reduces them over the role in two collectives (integers, doubles in rank
/// order) and turns them into metrics and the next balancing state.
class StepSums {
 public:
  /// `ce_sum` is this rank's share of the loss sum (0 on all tp ranks of a replica but the first).
  StepSums(const model::Transformer& model, const std::vector<moe::LayerStatistics>& statistics,
           double ce_sum);

  /// Collective over `role`; also takes the traffic counters and the peak memory of the ranks, and counts
  /// those that want to stop.
  void reduce(const parallel::Communicator& role, bool wants_stop);

  /// Counts of this batch become the f^ of the next; biases move (design section 4).
  void advance(moe::BalanceState& balance, const model::Transformer& model, const moe::MoeOptions& options,
               std::int64_t routed_tokens) const;

  /// Fills the loss, balance, byte and memory fields.
  void report(StepMetrics& metrics, const TrainerOptions& options, double labels) const;

 private:
  moe::LayerStatistics layer(std::int64_t index) const;

  std::int64_t num_layers_ = 0;
  std::int64_t num_experts_ = 0;
  at::Tensor counts_LE_;      // int64
  at::Tensor layer_ints_L2_;  // int64: dropped, sequences
  at::Tensor scores_LE_;      // f64
  at::Tensor layer_sums_L3_;  // f64: z, entropy, sequence loss
  double ce_sum_ = 0.0;
  std::array<std::int64_t, parallel::num_traffic_kinds> bytes_{};
  parallel::WireLosses losses_;
  std::int64_t peak_rss_bytes_ = 0;
  std::int64_t stop_requests_ = 0;
};

}  // namespace athanor::train
