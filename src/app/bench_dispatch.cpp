// `athanor bench dispatch`.
#include "train/bench_dispatch.hpp"

#include <fmt/format.h>

#include "app/bench_figures.hpp"
#include "app/commands.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "config/validate.hpp"

namespace athanor::app {
namespace {

// Bounds on the bytes of an FP8 dispatch against f32's: a code and its share of a scale are 0.258 of an f32.
constexpr double fp8_dispatch_bound = 0.27;
constexpr double fp8_total_bound = 0.4;

const char* name_of(base::WireType wire) {
  switch (wire) {
    case base::WireType::full:
      return "full";
    case base::WireType::bf16:
      return "bf16";
    case base::WireType::fp8:
      return "fp8";
  }
  return "";
}

bool is_fp8_with_bf16(const train::DispatchCase& measured) {
  return measured.dispatch == base::WireType::fp8 && measured.combine == base::WireType::bf16;
}

std::string name_of(const train::DispatchCase& measured) {
  return fmt::format("{} routing, dispatch {}, combine {}", measured.routing, name_of(measured.dispatch),
                     name_of(measured.combine));
}

std::vector<BenchFigure> figures_of(const train::BenchDispatchResult& result) {
  std::vector<BenchFigure> figures;
  for (const train::DispatchCase& measured : result.cases) {
    figures.push_back({name_of(measured), "tokens/s", measured.tokens_per_s.median, "memory copy",
                       measured.limit.median, measured.ratio});
  }
  return figures;
}

nlohmann::json to_json(const train::DispatchCase& measured) {
  nlohmann::json json = {{"routing", measured.routing},
                         {"dispatch", name_of(measured.dispatch)},
                         {"combine", name_of(measured.combine)},
                         {"dispatch_bytes", measured.dispatch_bytes},
                         {"dispatch_formula_bytes", measured.dispatch_formula},
                         {"dispatch_f32_bytes", measured.dispatch_f32},
                         {"combine_bytes", measured.combine_bytes},
                         {"combine_formula_bytes", measured.combine_formula},
                         {"combine_f32_bytes", measured.combine_f32},
                         {"equal", measured.agrees()}};
  put_spread(json, "tokens_per_s", measured.tokens_per_s);
  put_spread(json, "limit_tokens_per_s", measured.limit);
  put_spread(json, "ratio", measured.ratio);
  put_number(json, "dispatch_share_of_f32", measured.dispatch_share());
  put_number(json, "total_share_of_f32", measured.total_share());
  return json;
}

std::string bytes_text(const train::DispatchCase& measured) {
  const bool has_bounds = is_fp8_with_bf16(measured);
  const auto bound = [&](double share, double most) {
    return has_bounds ? fmt::format(" (at most {}: {})", most, share <= most ? "kept" : "NOT KEPT") : "";
  };
  return fmt::format(
      "{:<48} dispatch {} bytes, {} by the formula; combine {}, {}: {}; of f32's: dispatch {:.4f}{}, all "
      "four "
      "{:.4f}{}\n",
      name_of(measured), measured.dispatch_bytes, measured.dispatch_formula, measured.combine_bytes,
      measured.combine_formula, measured.agrees() ? "equal" : "NOT EQUAL", measured.dispatch_share(),
      bound(measured.dispatch_share(), fp8_dispatch_bound), measured.total_share(),
      bound(measured.total_share(), fp8_total_bound));
}

train::BenchDispatchOptions make_options(const config::RunConfig& config, int ranks) {
  const config::RoleConfig& role = config.roles[0];
  train::BenchDispatchOptions options;
  options.dims = config::resolve_dims(role, ranks);
  options.tokens =
      config::resolve_micro_batch(config, role, options.dims) * config.batch.seq / options.dims.tp;
  options.hidden = role.model.hidden;
  options.experts = role.model.moe.num_experts;
  options.top_k = role.model.moe.top_k;
  options.compute = role.precision.compute;
  options.fp8_format = role.precision.fp8_format;
  options.seed = config.run.seed;
  options.warmup_steps = config.bench.warmup_steps;
  options.rounds = config.bench.rounds;
  options.steps_per_round = config.bench.steps_per_round;
  return options;
}

}  // namespace

CommandResult run_bench_dispatch(const config::RunConfig& config, const parallel::Communicator& world) {
  if (config.roles[0].model.moe.num_experts == 0) {
    throw base::ConfigError("moe.experts=0 (bench dispatch brings tokens to experts) give the model some");
  }
  if (config.roles[0].parallel.ep == 1) {
    throw base::ConfigError(
        "parallel.ep=1 (every rank has all experts and nothing is sent) start 2 ranks or more and set "
        "parallel.ep");
  }
  const train::BenchDispatchOptions options = make_options(config, world.size());
  const train::BenchDispatchResult result = train::bench_dispatch(options, world);
  const std::vector<BenchFigure> figures = figures_of(result);
  CommandResult command{to_text(figures),
                        {{"ranks", world.size()},
                         {"tokens_per_step", options.tokens * world.size()},
                         {"routings", nlohmann::json::array()},
                         {"cases", nlohmann::json::array()}}};
  command.json["figures"] = to_json(figures);
  for (const train::RoutingShape& routing : result.routings) {
    command.text += fmt::format("{} routing: std of f/mu {:.3f}, fullest rank {:.3f} of the mean\n",
                                routing.name, routing.expert_use_std, routing.rank_load);
    command.json["routings"].push_back({{"name", routing.name},
                                        {"expert_use_std", routing.expert_use_std},
                                        {"rank_load", routing.rank_load}});
  }
  for (const train::DispatchCase& measured : result.cases) {
    command.text += bytes_text(measured);
    command.json["cases"].push_back(to_json(measured));
    if (!measured.agrees()) {
      command.exit_code = base::ExitCode::internal;
    }
  }
  return command;
}

}  // namespace athanor::app
