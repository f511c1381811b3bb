#include "app/training_job.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "app/commands.hpp"
#include "app/initial_weights.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/run_lock.hpp"
#include "config/command_line.hpp"
#include "config/compare.hpp"
#include "config/ini.hpp"
#include "data/dataset.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

std::string checkpoints_dir(const config::RunConfig& config) {
  return config.checkpoint.dir.empty() ? config.run.dir + "/checkpoints" : config.checkpoint.dir;
}

std::string tokenizer_copy(const config::RunConfig& config) {
  return config.data.tokenizer.empty() ? "" : config.run.dir + "/" + checkpoint::tokenizer_file;
}

// Refuses to go on from a checkpoint of another run; says what else has changed.
void check_stored(const config::RunConfig& config, const checkpoint::Manifest& stored,
                  const checkpoint::Manifest& current) {
  const std::vector<std::string> allowed = config::split_list(config.run.allow_mismatch);
  std::vector<config::Difference> refused;
  std::vector<config::Difference> noted;
  const auto sort_in = [&](config::Difference difference) {
    const bool is_allowed = std::find(allowed.begin(), allowed.end(), difference.key) != allowed.end();
    (difference.matters && !is_allowed ? refused : noted).push_back(std::move(difference));
  };
  for (config::Difference& difference : config::compare_with_stored(stored.config, config)) {
    sort_in(std::move(difference));
  }
  for (const auto& [content, key] :
       {std::pair("train", "data.train"), std::pair("tokenizer", "data.tokenizer"),
        std::pair("frozen", "teacher.init"), std::pair("signals", "distill.source")}) {
    // An imported checkpoint names none.
    const std::string was = stored.data.is_object() ? stored.data.value(content, "") : "";
    const std::string is = current.data.value(content, "");
    if (!was.empty() && was != is) {
      sort_in({key, "content " + was, is.empty() ? "none" : "content " + is, true});
    }
  }
  if (!refused.empty()) {
    throw base::ConfigError(
        "the configuration does not fit the checkpoint of step {} (these keys would make it another "
        "run:{}\n) set "
        "them back, start afresh in another run.dir, or name those that may differ in run.allow_mismatch",
        stored.step, config::describe(refused));
  }
  if (!noted.empty()) {
    base::log_info("differs from the checkpoint's configuration:{}", config::describe(noted));
  }
}

train::CheckpointOptions make_checkpoint_options(const config::RunConfig& config) {
  train::CheckpointOptions options;
  options.dir = checkpoints_dir(config);
  options.every = config.checkpoint.every;
  options.keep = config.checkpoint.keep;
  for (const std::string& step : config::split_list(config.checkpoint.pinned)) {
    options.pinned.push_back(std::stoll(step));
  }
  options.async = config.checkpoint.async;
  options.on_error = config.checkpoint.on_error == config::OnSaveError::stop ? train::OnSaveError::stop
                                                                             : train::OnSaveError::retry;
  return options;
}

train::GuardOptions make_guard_options(const config::GuardSection& guard) {
  constexpr std::array actions = {std::pair(config::GuardAction::off, train::GuardAction::off),
                                  std::pair(config::GuardAction::warn, train::GuardAction::warn),
                                  std::pair(config::GuardAction::skip, train::GuardAction::skip),
                                  std::pair(config::GuardAction::rollback, train::GuardAction::rollback)};
  train::GuardOptions options;
  for (const auto& [from, to] : actions) {
    options.action = guard.action == from ? to : options.action;
  }
  options.window = guard.window;
  options.loss_mads = guard.loss_mads;
  options.norm_factor = guard.norm_factor;
  options.min_steps = guard.min_steps;
  options.max_trips = guard.max_trips;
  options.hold_steps = guard.hold_steps;
  options.max_rollbacks = guard.max_rollbacks;
  options.skip_batches = guard.skip_batches;
  options.replica_every = guard.replica_every;
  return options;
}

train::MonitorOptions make_monitor_options(const config::MonitorSection& monitor) {
  return {monitor.expert_use_std, monitor.loss_fluctuation, monitor.step_time_ratio, monitor.window,
          monitor.repeat_every};
}

train::ResumeOptions make_resume_options(const config::RunConfig& config) {
  train::ResumeOptions options;
  options.mode = config.run.resume == "auto"    ? train::ResumeMode::automatic
                 : config.run.resume == "never" ? train::ResumeMode::never
                                                : train::ResumeMode::path;
  options.path = config.run.resume;
  options.check = [&config](const checkpoint::Manifest& stored, const checkpoint::Manifest& current) {
    check_stored(config, stored, current);
  };
  return options;
}

}  // namespace

checkpoint::RunLock prepare_run_folder(const config::RunConfig& config) {
  namespace fs = std::filesystem;
  try {
    fs::create_directories(config.run.dir);
    checkpoint::RunLock lock(config.run.dir);
    fs::create_directories(checkpoints_dir(config));
    base::configure_log({.print_once = true, .local_prefix = "rank 0", .file = config.run.dir + "/log.txt"});
    for (const std::string& name : checkpoint::remove_leftovers(checkpoints_dir(config))) {
      base::log_info("removed {} of an earlier job (a save that did not end)", name);
    }
    std::ofstream ini(config.run.dir + "/config.ini", std::ios::trunc);
    ini << config::to_ini(config) << std::flush;
    if (!ini) {
      throw fs::filesystem_error("config.ini", std::error_code(errno, std::generic_category()));
    }
    if (const fs::path copy = tokenizer_copy(config); !copy.empty()) {
      if (!fs::exists(copy) || !fs::equivalent(copy, config.data.tokenizer)) {
        fs::copy_file(config.data.tokenizer, copy, fs::copy_options::overwrite_existing);
      }
    }
    return lock;
  } catch (const fs::filesystem_error& error) {
    throw base::CannotCreateError("run.dir={} cannot be written ({}) choose a folder you may write to",
                                  config.run.dir, error.code().message());
  }
}

void check_data_files(const config::RunConfig& config) {
  check_initial_weights(config);
  for (const std::string& list : {config.data.train, config.data.valid}) {
    if (!list.empty()) {
      const data::Dataset opened({.sources = data::parse_sources(list), .seq = config.batch.seq});
    }
  }
}

train::TrainingOptions make_training_options(const config::RunConfig& config,
                                             const config::RoleConfig& role) {
  train::TrainingOptions options;
  options.run_dir = config.run.dir;
  options.program = fmt::format("athanor {}", config::version);
  options.config_text = config::to_ini(config);
  options.tokenizer = tokenizer_copy(config);
  options.seed = config.run.seed;
  options.role = make_role_options(role);
  if (!role.init.empty()) {
    options.init = checkpoint::resolve_checkpoint(role.init);
    options.shrink = make_shrink_options(role, options.init);
  }
  options.train_sources = data::parse_sources(config.data.train);
  options.valid_sources = data::parse_sources(config.data.valid);
  options.reset_attention = config.data.reset_attention;
  options.global_batch = config.batch.global;
  options.seq = config.batch.seq;
  options.steps = config.train.steps;
  options.log_every = config.train.log_every;
  options.eval_every = config.train.eval_every;
  options.trace = {config.train.trace, config.train.trace_from};
  options.eval_batches = config.train.eval_batches;
  options.checkpoint = make_checkpoint_options(config);
  options.resume = make_resume_options(config);
  options.stop.end_time = config.run.end_time;
  options.stop.margin_s = config.run.stop_margin_s;
  options.straggler_score = config.watchdog.straggler_score;
  options.guard = make_guard_options(config.guard);
  options.monitors = make_monitor_options(config.monitor);
  return options;
}

nlohmann::json to_json(const train::TrainingResult& result) {
  nlohmann::json json = {{"first_step", result.first_step}, {"steps", result.steps},
                         {"tokens", result.tokens},         {"peak_rss_bytes", result.peak_rss_bytes},
                         {"checkpoint", result.checkpoint}, {"stopped", result.stopped}};
  put_number(json, "first_loss", result.first_loss);
  put_number(json, "last_loss", result.last_loss);
  put_number(json, "expert_use_std", result.expert_use_std);
  put_number(json, "tokens_per_s", result.tokens_per_s);
  put_number(json, "startup_s", result.startup_s);
  put_number(json, "checkpoint_s", result.checkpoint_s);
  for (const auto& [name, value] : result.figures) {
    put_number(json, name, value);
  }
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
  std::string text;
  if (result.steps == 0 && !result.stopped.empty()) {
    text = "no step was made\n";
  } else if (result.steps == 0) {
    text = fmt::format("nothing left to train: the run is at step {}\n", result.first_step);
  } else {
    text = fmt::format("trained {} steps from step {}, {} tokens seen, {:.0f} tokens/s\n", result.steps,
                       result.first_step, result.tokens, result.tokens_per_s);
    text += fmt::format("training loss: {:.4f} at the first step, {:.4f} over the last ones\n",
                        result.first_loss, result.last_loss);
    text += fmt::format("expert use: std of f/mu {:.3f}\n", result.expert_use_std);
  }
  for (const infer::DomainLoss& domain : result.evaluation) {
    text += fmt::format("held-out {}: loss {:.4f}, perplexity {:.2f} over {} tokens\n", domain.domain,
                        domain.loss, domain.perplexity, domain.tokens);
  }
  if (!result.stopped.empty()) {
    text +=
        fmt::format("stopped before the end ({}): give the same command again to go on\n", result.stopped);
  }
  return text + fmt::format("checkpoint: {}\n", result.checkpoint);
}

base::ExitCode exit_code_of(const train::TrainingResult& result) {
  return result.stopped.empty() ? base::ExitCode::ok : base::ExitCode::requeue;
}

}  // namespace athanor::app
