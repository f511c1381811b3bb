// What is known of one training step; equal on all ranks of the role.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parallel/traffic.hpp"

namespace athanor::train {

/// Balance of one sparse layer over the global batch.
struct LayerBalance {
  double use_std = 0.0;  ///< std over experts of f_i / mu
  double use_max = 0.0;  ///< max over experts of f_i / mu
  double use_min = 0.0;  ///< min over experts of f_i / mu
  double dropped = 0.0;  ///< share of choices dropped by capacity
  double entropy = 0.0;  ///< mean entropy of the normalised router scores, nats
};

/// Seconds of a step by part, on this rank.
struct StepTimes {
  double data_s = 0.0;
  double forward_s = 0.0;
  double backward_s = 0.0;
  double exchange_s = 0.0;  ///< inside forward and backward: dispatch and combine of the sparse layers
  double reduce_s = 0.0;
  double optimizer_s = 0.0;
  double gather_s = 0.0;
  double checkpoint_s = 0.0;  ///< stood still for a save that began after the step before
  double total_s = 0.0;
};

/// The rank with the longest time of its own for a step (train/straggler.hpp).
struct SlowestRank {
  int rank = -1;       ///< in the role; -1: not looked for at this step
  double score = 1.0;  ///< the others' median / its own time
  std::string phase;   ///< in which it loses most
};

struct StepMetrics {
  std::string role;
  std::int64_t step = 0;                        ///< 1 after the first step
  double loss = 0.0;                            ///< mean CE per valid token, nats
  double total_loss = 0.0;                      ///< what is minimised: loss + weighted balance and z terms
  double balance_loss = 0.0;                    ///< sum over layers and kinds, unweighted
  std::map<std::string, double> balance_terms;  ///< per kind, sum over layers, unweighted
  double grad_norm = 0.0;                       ///< before clipping
  double lr = 0.0;
  double loss_scale = 1.0;
  std::int64_t tokens = 0;  ///< valid labels seen so far, cumulative
  double tokens_per_s = 0.0;
  double expert_use_std = 0.0;  ///< mean of the layers' use_std
  std::int64_t dropped = 0;     ///< choices dropped in this step
  bool skipped = false;
  std::int64_t total_skips = 0;
  std::string guard;             ///< what the numeric guard saw or did; empty: nothing
  std::int64_t guard_trips = 0;  ///< of the run so far
  std::string rollback_reason;   ///< why the run is to go back to a checkpoint; empty: it is not
  /// loss_fluctuation, step_time_p99_s; none before their windows are full.
  std::map<std::string, double> monitors;
  std::array<std::int64_t, parallel::num_traffic_kinds> bytes_sent{};  ///< of this step, summed over the role
  parallel::WireLosses wire_losses;  ///< of the fp8 wires in this step, summed over the role
  std::vector<LayerBalance> layers;
  std::vector<std::vector<std::int64_t>>
      expert_counts;                      ///< [sparse layer][expert] of this step's global batch
  std::int64_t peak_rss_bytes = 0;        ///< largest rank
  std::map<std::string, double> figures;  ///< of the objective: kd_loss, alpha, link_wait_s, ...
  std::string phase;                      ///< of a distillation; empty: none
  std::int64_t save_requests = 0;         ///< ranks that asked for a checkpoint after this step
  std::int64_t stop_requests = 0;         ///< ranks that asked before this step that the job stops after it
  std::int64_t late_stop_requests = 0;    ///< ranks that asked so by the end of the step
  StepTimes times;
  SlowestRank slowest;
};

}  // namespace athanor::train
