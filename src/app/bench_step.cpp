// `athanor bench step`.
#include "train/bench_step.hpp"

#include <fmt/format.h>

#include "app/bench_figures.hpp"
#include "app/commands.hpp"
#include "app/role_setup.hpp"
#include "checkpoint/catalog.hpp"
#include "data/dataset.hpp"

namespace athanor::app {
namespace {

std::vector<BenchFigure> figures_of(const train::BenchStepResult& result) {
  return {{"training steps",
           "tokens/s",
           result.tokens_per_s,
           "GEMM limit",
           result.gemm_limit_tokens_per_s,
           {result.ratio, result.ratio_min, result.ratio_max}}};
}

nlohmann::json to_json(const train::BenchStepResult& result) {
  nlohmann::json json = {{"peak_rss_bytes", result.peak_rss_bytes},
                         {"bytes_sent_per_step", result.bytes_sent_per_step},
                         {"stored_numbers", result.stored_numbers},
                         {"stored_bytes", result.stored_bytes}};
  json["figures"] = to_json(figures_of(result));
  put_number(json, "tokens_per_s", result.tokens_per_s);
  put_number(json, "gemm_limit_tokens_per_s", result.gemm_limit_tokens_per_s);
  put_number(json, "ratio", result.ratio);
  put_number(json, "ratio_min", result.ratio_min);
  put_number(json, "ratio_max", result.ratio_max);
  json["products"] = nlohmann::json::array();
  for (const train::GemmProduct& product : result.products) {
    nlohmann::json entry = {
        {"name", product.name}, {"shape", product.shape}, {"implementation", product.implementation}};
    put_number(entry, "gflops", product.gflops);
    put_number(entry, "seconds", product.seconds);
    json["products"].push_back(std::move(entry));
  }
  const train::StepTimes& times = result.times;
  json["times"] = {{"data_s", times.data_s},         {"forward_s", times.forward_s},
                   {"backward_s", times.backward_s}, {"exchange_s", times.exchange_s},
                   {"reduce_s", times.reduce_s},     {"optimizer_s", times.optimizer_s},
                   {"gather_s", times.gather_s},     {"total_s", times.total_s}};
  return json;
}

std::string to_text(const train::BenchStepResult& result) {
  std::string text = fmt::format("{:<28} {:<36} {:<14} {:>10} {:>10}\n", "product", "shape", "implementation",
                                 "GFLOP/s", "ms a step");
  for (const train::GemmProduct& product : result.products) {
    text += fmt::format("{:<28} {:<36} {:<14} {:>10.1f} {:>10.2f}\n", product.name, product.shape,
                        product.implementation, product.gflops, product.seconds * 1e3);
  }
  const train::StepTimes& times = result.times;
  text += fmt::format(
      "step of rank 0: {:.1f} ms = data {:.1f}, forward {:.1f}, backward {:.1f} (exchange {:.1f} inside), "
      "reduce {:.1f}, optimizer {:.1f}, gather {:.1f}\n",
      times.total_s * 1e3, times.data_s * 1e3, times.forward_s * 1e3, times.backward_s * 1e3,
      times.exchange_s * 1e3, times.reduce_s * 1e3, times.optimizer_s * 1e3, times.gather_s * 1e3);
  for (const auto& [purpose, bytes] : result.bytes_sent_per_step) {
    text += fmt::format("sent a step, {}: {:.2f} MB\n", purpose, static_cast<double>(bytes) / 1e6);
  }
  if (result.stored_numbers > 0) {
    text += fmt::format(
        "kept in FP8 by rank 0: {:.2f} MB ({:.3f} of fp16's)\n",
        static_cast<double>(result.stored_bytes) / 1e6,
        static_cast<double>(result.stored_bytes) / (2.0 * static_cast<double>(result.stored_numbers)));
  }
  text += fmt::format("peak memory of a rank: {:.0f} MB\n", static_cast<double>(result.peak_rss_bytes) / 1e6);
  return text + to_text(figures_of(result));
}

// The router's choices beside balanced ones.
CommandResult compare_routing(const train::BenchStepOptions& options, const parallel::Communicator& role) {
  const train::BenchRoutingResult result = train::bench_routing(
      {options.trainer, options.model, options.warmup_steps, options.rounds, options.steps_per_round}, role);
  nlohmann::json json = {{"expert_use_std", result.expert_use_std},
                         {"largest_load", result.largest_load},
                         {"peak_rss_bytes", result.peak_rss_bytes}};
  put_spread(json, "model_s", result.model_s);
  put_spread(json, "balanced_s", result.balanced_s);
  put_spread(json, "ratio", result.ratio);
  return {fmt::format("step by the router's choices {:.1f} ms, balanced {:.1f} ms, ratio {:.3f} ({:.3f} to "
                      "{:.3f} over rounds); std of f/mu {:.3f}, most rows of a rank {:.3f} of the mean\n",
                      result.model_s.median * 1e3, result.balanced_s.median * 1e3, result.ratio.median,
                      result.ratio.min, result.ratio.max, result.expert_use_std, result.largest_load),
          json};
}

}  // namespace

CommandResult run_bench_step(const config::RunConfig& config, const parallel::Communicator& world) {
  train::BenchStepOptions options;
  if (!config.roles[0].init.empty()) {
    options.model.init = checkpoint::resolve_checkpoint(config.roles[0].init);
  }
  options.model.sources = data::parse_sources(config.data.train);
  options.routing = config.bench.worst_routing ? train::BenchRouting::worst : train::BenchRouting::model;
  options.warmup_steps = config.bench.warmup_steps;
  options.rounds = config.bench.rounds;
  options.steps_per_round = config.bench.steps_per_round;
  options.trainer.role = make_role_options(config.roles[0]);
  options.trainer.global_batch = config.batch.global;
  options.trainer.seq = config.batch.seq;
  options.trainer.total_steps = options.warmup_steps + options.rounds * options.steps_per_round;
  options.trainer.seed = config.run.seed;
  const parallel::RoleSplit roles = split_roles(config, world);
  if (config.bench.compare_balanced) {
    return compare_routing(options, roles.comm());
  }
  const train::BenchStepResult result = train::bench_step(options, roles.comm());
  return {to_text(result), to_json(result)};
}

}  // namespace athanor::app
