#include "config/plan/time_plan.hpp"

#include <algorithm>

#include "config/plan/memory_plan.hpp"

namespace athanor::config {
namespace {

// Multiply-adds of one token's products in all layers and the head, at top_k experts; attention over `seq`
// positions, half of which a causal mask leaves.
double products_of_token(const model::TransformerConfig& model, std::int64_t seq, bool with_head) {
  const auto hidden = static_cast<double>(model.hidden);
  const auto head = static_cast<double>(model.resolved_head_dim());
  const auto heads = static_cast<double>(model.heads);
  const double projections = hidden * head * static_cast<double>(2 * model.heads + 2 * model.kv_heads);
  const double attention = heads * head * static_cast<double>(seq);
  double sum = with_head ? hidden * static_cast<double>(model.vocab_size) : 0.0;
  for (const model::LayerSpec& layer : model::resolve_layers(model)) {
    const moe::MoeOptions& moe = model.moe;
    const auto ffn = static_cast<double>(
        layer.ffn == model::FfnKind::dense ? model.ffn : (moe.top_k + moe.shared_experts) * moe.ffn);
    const auto router =
        static_cast<double>(layer.ffn == model::FfnKind::dense ? 0 : moe.num_experts) * hidden;
    sum += projections + attention + 3 * hidden * ffn + router;
  }
  return sum;
}

}  // namespace

double TimePlan::overlapped_s() const {
  return std::max(compute_s, hideable_s) + node_s + link_s - hideable_s;
}

TimePlan plan_time(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims,
                   const TrafficPlan& traffic) {
  TimePlan plan;
  const auto tokens = static_cast<double>(config.batch.global * config.batch.seq);
  const double all = products_of_token(role.model, config.batch.seq, true);
  const double layers = products_of_token(role.model, config.batch.seq, false);
  const bool trains = is_trained(config, role);
  plan.flops = 2.0 * tokens * (all * (trains ? 3.0 : 1.0) + (trains && role.model.recompute ? layers : 0.0));
  plan.rank_flops = plan.flops / static_cast<double>(dims.num_ranks());
  const PlanSection& machine = config.plan;
  if (machine.flops_per_s == 0.0) {
    return plan;
  }
  plan.compute_s = plan.rank_flops / (machine.flops_per_s * machine.gemm_efficiency);
  const double node_rate =
      machine.node_bytes_per_s > 0.0 ? machine.node_bytes_per_s : machine.link_bytes_per_s;
  for (const Exchange& exchange : traffic.exchanges) {
    const double bytes = static_cast<double>(exchange.bytes) / static_cast<double>(dims.num_ranks());
    const double away = bytes * exchange.between_nodes;
    const double link_s = machine.link_bytes_per_s > 0.0 ? away / machine.link_bytes_per_s : 0.0;
    const double node_s = node_rate > 0.0 ? (bytes - away) / node_rate : 0.0;
    plan.link_s += link_s;
    plan.node_s += node_s;
    plan.hideable_s += exchange.can_hide ? link_s + node_s : 0.0;
  }
  return plan;
}

TrafficPlan with_all_overlap(TrafficPlan traffic) {
  for (Exchange& exchange : traffic.exchanges) {
    exchange.can_hide = exchange.can_hide || exchange.purpose != parallel::Traffic::other;
  }
  return traffic;
}

}  // namespace athanor::config
