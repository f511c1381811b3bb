#include "app/plan_report.hpp"

#include <string>

#include "config/estimate.hpp"

namespace athanor::app {
namespace {

nlohmann::json to_json(const config::ActivationPlan& plan) {
  nlohmann::json json = {{"peak", plan.peak}};
  for (std::size_t i = 0; i < config::num_activation_kinds; ++i) {
    json[std::string(config::activation_names[i])] = plan.at_peak[i];
  }
  return json;
}

nlohmann::json to_json(const config::MemoryPlan& plan) {
  nlohmann::json json = {{"total", plan.total()},
                         {"worst_case", plan.worst_total()},
                         {"activations_by_kind", to_json(plan.activations)},
                         {"worst_activations_by_kind", to_json(plan.worst)}};
  for (const auto& [name, bytes] : plan.parts()) {
    json[std::string(name)] = bytes;
  }
  return json;
}

nlohmann::json to_json(const config::TrafficPlan& plan) {
  nlohmann::json json = {{"bytes", nlohmann::json::object()}, {"exchanges", nlohmann::json::array()}};
  for (int kind = 0; kind < parallel::num_traffic_kinds; ++kind) {
    const std::string name(parallel::traffic_names[static_cast<std::size_t>(kind)]);
    json["bytes"][name] = plan.bytes(static_cast<parallel::Traffic>(kind));
  }
  for (const config::Exchange& exchange : plan.exchanges) {
    const std::string name(parallel::traffic_names[static_cast<std::size_t>(exchange.purpose)]);
    json["exchanges"].push_back({{"purpose", name},
                                 {"formula", exchange.formula},
                                 {"bytes", exchange.bytes},
                                 {"between_nodes", exchange.between_nodes}});
  }
  return json;
}

}  // namespace

nlohmann::json plan_of_role(const config::RunConfig& config, const config::RoleConfig& role,
                            const parallel::ParallelDims& dims) {
  const model::ParameterCount count = model::count_parameters(role.model);
  const config::MemoryPlan memory = config::plan_memory(config, role, dims);
  nlohmann::json json = {{"ranks", dims.num_ranks()},
                         {"dp", dims.dp},
                         {"tp", dims.tp},
                         {"ep", dims.ep},
                         {"parameters", count.total},
                         {"active_parameters", count.active},
                         {"rank_bytes", memory.total()},
                         {"memory", to_json(memory)}};
  if (!config::is_trained(config, role) && !role.frozen) {
    return json;
  }
  const config::TrafficPlan traffic = config::plan_traffic(config, role, dims);
  json["sent_per_step"] = to_json(traffic);
  const config::TimePlan time = config::plan_time(config, role, dims, traffic);
  json["flops_per_step"] = time.flops;
  if (config.plan.flops_per_s > 0.0) {
    const config::TimePlan hidden = config::plan_time(config, role, dims, config::with_all_overlap(traffic));
    json["step_s"] = {{"products", time.compute_s},        {"in_nodes", time.node_s},
                      {"between_nodes", time.link_s},      {"serial", time.serial_s()},
                      {"overlapped", time.overlapped_s()}, {"all_overlapped", hidden.overlapped_s()}};
  }
  return json;
}

}  // namespace athanor::app
