// `athanor train`.
#include "train/training.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "app/commands.hpp"
#include "app/launch.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "config/command_line.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

// The folder exists, takes files, holds no finished run, and gets its own copy of the tokenizer.
void prepare_run_folder(const config::RunConfig& config) {
  namespace fs = std::filesystem;
  try {
    if (fs::exists(fs::path(config.run.dir) / "model.safetensors")) {
      throw base::CannotCreateError(
          "run.dir={} holds a finished run (model.safetensors is there) choose another folder, "
          "or remove that one",
          config.run.dir);
    }
    fs::create_directories(config.run.dir);
    if (!config.data.tokenizer.empty()) {
      const fs::path copy = fs::path(config.run.dir) / tokenizer_copy;
      if (!fs::exists(copy) || !fs::equivalent(copy, config.data.tokenizer)) {
        fs::copy_file(config.data.tokenizer, copy, fs::copy_options::overwrite_existing);
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw base::CannotCreateError("run.dir={} cannot be written ({}) choose a folder you may write to",
                                  config.run.dir, error.code().message());
  }
  base::configure_log({.print_once = true, .local_prefix = "rank 0", .file = config.run.dir + "/log.txt"});
}

train::TrainingOptions make_options(const config::RunConfig& config) {
  train::TrainingOptions options;
  options.run_dir = config.run.dir;
  options.config_text = config::to_ini(config);
  options.seed = config.run.seed;
  options.role = make_role_options(config.roles[0]);
  options.train_sources = data::parse_sources(config.data.train);
  options.valid_sources = data::parse_sources(config.data.valid);
  options.reset_attention = config.data.reset_attention;
  options.global_batch = config.batch.global;
  options.seq = config.batch.seq;
  options.steps = config.train.steps;
  options.log_every = config.train.log_every;
  options.eval_every = config.train.eval_every;
  options.eval_batches = config.train.eval_batches;
  return options;
}

nlohmann::json to_json(const train::TrainingResult& result) {
  nlohmann::json json = {{"steps", result.steps},
                         {"tokens", result.tokens},
                         {"peak_rss_bytes", result.peak_rss_bytes},
                         {"weights", result.weights_path}};
  put_number(json, "first_loss", result.first_loss);
  put_number(json, "last_loss", result.last_loss);
  put_number(json, "expert_use_std", result.expert_use_std);
  put_number(json, "tokens_per_s", result.tokens_per_s);
  put_number(json, "startup_s", result.startup_s);
  json["evaluation"] = nlohmann::json::object();
  for (const infer::DomainLoss& domain : result.evaluation) {
    nlohmann::json& entry = json["evaluation"][domain.domain];
    entry["tokens"] = domain.tokens;
    put_number(entry, "loss", domain.loss);
    put_number(entry, "perplexity", domain.perplexity);
  }
  return json;
}

std::string to_text(const train::TrainingResult& result) {
  std::string text = fmt::format("trained {} steps, {} tokens, {:.0f} tokens/s\n", result.steps,
                                 result.tokens, result.tokens_per_s);
  text += fmt::format("training loss: {:.4f} at the first step, {:.4f} over the last ones\n",
                      result.first_loss, result.last_loss);
  text += fmt::format("expert use: std of f/mu {:.3f}\n", result.expert_use_std);
  for (const infer::DomainLoss& domain : result.evaluation) {
    text += fmt::format("held-out {}: loss {:.4f}, perplexity {:.2f} over {} tokens\n", domain.domain,
                        domain.loss, domain.perplexity, domain.tokens);
  }
  return text + fmt::format("weights: {}\n", result.weights_path);
}

}  // namespace

CommandResult run_train(const config::RunConfig& config, const parallel::Communicator& world) {
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      prepare_run_folder(config);
    }
  });
  const parallel::RoleSplit roles = split_roles(config, world);
  const train::TrainingResult result = train::run_training(make_options(config), roles.comm());
  return {to_text(result), to_json(result)};
}

}  // namespace athanor::app
