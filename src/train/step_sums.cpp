#include "train/step_sums.hpp"

#include <ATen/ATen.h>

#include "base/memory.hpp"
#include "moe/balance_loss.hpp"
#include "moe/moe_layer.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {

StepSums::StepSums(const model::Transformer& model, const std::vector<moe::LayerStatistics>& statistics,
                   double ce_sum)
    : num_layers_(model.num_sparse_layers()), num_experts_(model.config().moe.num_experts), ce_sum_(ce_sum) {
  counts_LE_ = at::zeros({num_layers_, num_experts_}, at::kLong);
  layer_ints_L2_ = at::zeros({num_layers_, 2}, at::kLong);
  scores_LE_ = at::zeros({num_layers_, num_experts_}, at::kDouble);
  layer_sums_L3_ = at::zeros({num_layers_, 3}, at::kDouble);
  for (std::int64_t i = 0; i < num_layers_; ++i) {
    const moe::LayerStatistics& layer = statistics[static_cast<std::size_t>(i)];
    counts_LE_[i].copy_(layer.counts_E);
    scores_LE_[i].copy_(layer.score_sum_E);
    auto* ints = layer_ints_L2_.data_ptr<std::int64_t>() + 2 * i;
    ints[0] = layer.dropped;
    ints[1] = layer.num_sequences;
    auto* sums = layer_sums_L3_.data_ptr<double>() + 3 * i;
    sums[0] = layer.z_sum;
    sums[1] = layer.entropy_sum;
    sums[2] = layer.sequence_sum;
  }
}

void StepSums::reduce(const parallel::Communicator& role, bool wants_stop) {
  // The counters stop here: what follows is bookkeeping of every step, the same few bytes.
  bytes_ = role.traffic().all();
  losses_ = role.traffic().losses();
  const std::int64_t layer_numel = num_layers_ * num_experts_;
  at::Tensor bytes = at::empty({parallel::num_traffic_kinds}, at::kLong);
  std::copy(bytes_.begin(), bytes_.end(), bytes.data_ptr<std::int64_t>());
  at::Tensor integers =
      at::cat({counts_LE_.flatten(), layer_ints_L2_.flatten(), bytes,
               at::full({1}, std::int64_t{wants_stop ? 1 : 0}, at::kLong),
               at::full({1}, losses_.underflow, at::kLong), at::full({1}, losses_.nonfinite, at::kLong)});
  parallel::all_reduce_(integers, parallel::ReduceOp::sum, role, parallel::Traffic::other);
  counts_LE_ = integers.narrow(0, 0, layer_numel).view({num_layers_, num_experts_});
  layer_ints_L2_ = integers.narrow(0, layer_numel, 2 * num_layers_).view({num_layers_, 2});
  const auto* reduced = integers.data_ptr<std::int64_t>() + layer_numel + 2 * num_layers_;
  std::copy(reduced, reduced + parallel::num_traffic_kinds, bytes_.begin());
  stop_requests_ = reduced[parallel::num_traffic_kinds];
  losses_ = {reduced[parallel::num_traffic_kinds + 1], reduced[parallel::num_traffic_kinds + 2]};

  at::Tensor doubles =
      at::cat({scores_LE_.flatten(), layer_sums_L3_.flatten(), at::full({1}, ce_sum_, at::kDouble)});
  parallel::all_reduce_(doubles, parallel::ReduceOp::sum, role, parallel::Traffic::other);
  scores_LE_ = doubles.narrow(0, 0, layer_numel).view({num_layers_, num_experts_});
  layer_sums_L3_ = doubles.narrow(0, layer_numel, 3 * num_layers_).view({num_layers_, 3});
  ce_sum_ = doubles[-1].item<double>();
  peak_rss_bytes_ = parallel::all_reduce_max(base::peak_resident_bytes(), role);
}

moe::LayerStatistics StepSums::layer(std::int64_t index) const {
  moe::LayerStatistics layer;
  layer.counts_E = counts_LE_[index];
  layer.score_sum_E = scores_LE_[index];
  layer.dropped = layer_ints_L2_.data_ptr<std::int64_t>()[2 * index];
  layer.num_sequences = layer_ints_L2_.data_ptr<std::int64_t>()[2 * index + 1];
  const double* sums = layer_sums_L3_.data_ptr<double>() + 3 * index;
  layer.z_sum = sums[0];
  layer.entropy_sum = sums[1];
  layer.sequence_sum = sums[2];
  return layer;
}

void StepSums::advance(moe::BalanceState& balance, const model::Transformer& model,
                       const moe::MoeOptions& options, std::int64_t routed_tokens) const {
  balance.previous_counts_LE.copy_(counts_LE_);
  balance.previous_tokens = routed_tokens;
  if (!options.uses(moe::BalanceKind::bias)) {
    return;
  }
  for (std::int64_t set = 0; set < model.num_parameter_sets(); ++set) {
    at::Tensor counts_E;  // summed over the layers that share the set
    for (std::int64_t i = 0; i < num_layers_; ++i) {
      if (model.sparse_parameter_sets()[static_cast<std::size_t>(i)] == set) {
        counts_E = counts_E.defined() ? counts_E + counts_LE_[i] : counts_LE_[i];
      }
    }
    if (counts_E.defined()) {
      at::Tensor bias_E = balance.bias_PE[set];
      moe::update_bias(bias_E, counts_E, options.bias_rate);
    }
  }
}

void StepSums::report(StepMetrics& metrics, const TrainerOptions& options, double labels) const {
  const moe::MoeOptions& moe = options.role.model.moe;
  const std::int64_t routed_tokens = options.global_batch * options.seq;
  metrics.loss = ce_sum_ / labels;
  metrics.total_loss = metrics.loss;
  metrics.bytes_sent = bytes_;
  metrics.wire_losses = losses_;
  metrics.peak_rss_bytes = peak_rss_bytes_;
  metrics.late_stop_requests = stop_requests_;
  for (std::int64_t i = 0; i < num_layers_; ++i) {
    const moe::LayerStatistics statistics = layer(i);
    const moe::BalanceValues values = moe::balance_values(statistics, routed_tokens, moe);
    metrics.layers.push_back(
        {values.use_std, values.use_max, values.use_min, values.dropped_share, values.entropy});
    metrics.expert_use_std += values.use_std / static_cast<double>(num_layers_);
    metrics.dropped += statistics.dropped;
    metrics.balance_loss += values.balance(moe);
    metrics.total_loss += values.weighted(moe);
    metrics.balance_terms["squared"] += values.squared;
    metrics.balance_terms["switch"] += values.switch_loss;
    metrics.balance_terms["z"] += values.z;
    if (moe.uses(moe::BalanceKind::sequence)) {
      metrics.balance_terms["sequence"] += values.sequence;
    }
    const auto* counts = statistics.counts_E.data_ptr<std::int64_t>();
    metrics.expert_counts.emplace_back(counts, counts + num_experts_);
  }
}

}  // namespace athanor::train
