#include "app/distill_search.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "config/command_line.hpp"
#include "config/search_plan.hpp"
#include "data/dataset.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

namespace fs = std::filesystem;

void write_whole(const fs::path& path, const std::string& text) {
  const fs::path unfinished = path.string() + ".tmp";
  std::ofstream file(unfinished, std::ios::trunc);
  file << text << '\n' << std::flush;
  std::error_code error;
  if (file) {
    fs::rename(unfinished, path, error);
  }
  if (!file || error) {
    throw base::IoError("{} cannot be written (disk full, or read-only) free space, then search again",
                        path.string());
  }
}

std::string fingerprint(const config::RunConfig& config, const std::string& sources) {
  const data::Dataset set({.sources = data::parse_sources(sources), .seq = config.batch.seq});
  return fmt::format("{:016x}", set.fingerprint());
}

// What the result of a trial depends on: results of another one are of no use. Where the job stands, and how
// long it waits, are left out.
nlohmann::json identify(const config::RunConfig& trial) {
  const config::RunConfig defaults;
  config::RunConfig plain = trial;
  plain.run = defaults.run;
  plain.run.seed = trial.run.seed;
  plain.run.device = trial.run.device;
  plain.train.log_every = defaults.train.log_every;
  plain.distill.window = defaults.distill.window;
  plain.distill.deadline_s = defaults.distill.deadline_s;
  nlohmann::json identity = {{"config", config::to_ini(plain)},
                             {"train", fingerprint(trial, trial.data.train)},
                             {"valid", fingerprint(trial, trial.data.valid)}};
  for (const config::RoleConfig& role : trial.roles) {
    if (!role.init.empty()) {
      const checkpoint::CheckpointReader init(checkpoint::resolve_checkpoint(role.init));
      identity[role.name + ".init"] = fmt::format("{} step {}", init.manifest().run_id, init.manifest().step);
    }
  }
  return identity;
}

std::string difference(const nlohmann::json& was, const nlohmann::json& is) {
  for (const auto& [key, value] : is.items()) {
    if (key != "config" && was.value(key, nlohmann::json()) != value) {
      return key + ": another content";
    }
  }
  return config::first_difference(was.value("config", ""), is.at("config").get<std::string>());
}

// The result of a trial that has ended in an earlier job; nothing when there is none. Rank 0 only.
std::optional<nlohmann::json> read_result(const config::RunConfig& trial, const nlohmann::json& identity) {
  const std::string path = trial.run.dir + "/result.json";
  std::ifstream file(path);
  if (!file) {
    return std::nullopt;
  }
  nlohmann::json result = nlohmann::json::parse(file, nullptr, false);
  if (!result.is_object() || !result.contains("identity") || !result.contains("students")) {
    base::log_warning("{} cannot be read (half written?): the trial is run again", path);
    return std::nullopt;
  }
  if (result["identity"] != identity) {
    throw base::ConfigError(
        "{} is of another search (then and now: {}) choose another run.dir, or remove its folder trials",
        path, difference(result["identity"], identity));
  }
  return result;
}

// Mean over all held-out tokens, whatever their domain.
nlohmann::json student_result(const train::TrainingResult& trained) {
  double sum = 0.0;
  std::int64_t tokens = 0;
  for (const infer::DomainLoss& domain : trained.evaluation) {
    sum += domain.loss * static_cast<double>(domain.tokens);
    tokens += domain.tokens;
  }
  const double loss =
      tokens > 0 ? sum / static_cast<double>(tokens) : std::numeric_limits<double>::quiet_NaN();
  const auto kd = trained.figures.find("kd_loss");
  nlohmann::json result = {{"tokens", tokens}};
  put_number(result, "loss", loss);
  put_number(result, "perplexity", std::exp(loss));
  put_number(result, "kd_loss",
             kd == trained.figures.end() ? std::numeric_limits<double>::quiet_NaN() : kd->second);
  return result;
}

struct Search {
  const config::RunConfig& config;
  const parallel::RoleSplit& roles;
  const parallel::Communicator& world;
  const TrialRunner& run_trial;
  bool has_run;  // a trial in this job
  std::string stopped;

  void prepare_folder(const config::RunConfig& trial) const;
  nlohmann::json gather(const train::TrainingResult& own, const config::RunConfig& trial) const;
  std::optional<nlohmann::json> find_or_run(std::size_t index);
};

void Search::prepare_folder(const config::RunConfig& trial) const {
  try {
    for (const config::RoleConfig& role : trial.roles) {
      fs::create_directories(trial.run.dir + "/" + role.name);
    }
  } catch (const fs::filesystem_error& error) {
    throw base::CannotCreateError("{} cannot be made ({}) choose a run.dir you may write to", trial.run.dir,
                                  error.code().message());
  }
  write_whole(trial.run.dir + "/config.ini", config::to_ini(trial));
}

nlohmann::json Search::gather(const train::TrainingResult& own, const config::RunConfig& trial) const {
  const std::vector<std::string> texts = parallel::all_gather_strings(student_result(own).dump(), world);
  nlohmann::json result = {{"trial", fs::path(trial.run.dir).filename().string()},
                           {"temperature", trial.distill.temperature.first}};
  for (std::size_t i = 0; i < trial.roles.size(); ++i) {
    if (trial.roles[i].kind == parallel::RoleKind::student) {
      const auto first = static_cast<std::size_t>(roles.first_world_rank(static_cast<int>(i)));
      result["students"][trial.roles[i].name] = nlohmann::json::parse(texts[first]);
    }
  }
  return result;
}

// Nothing: the job was asked to stop before the trial ended.
std::optional<nlohmann::json> Search::find_or_run(std::size_t index) {
  const config::RunConfig trial = config::make_trial(config, index);
  nlohmann::json identity;
  std::string known;
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      identity = identify(trial);
      if (const std::optional<nlohmann::json> result = read_result(trial, identity)) {
        known = result->dump();
        return;
      }
      prepare_folder(trial);
    }
  });
  known = parallel::broadcast_string(known, 0, world);
  if (!known.empty()) {
    return nlohmann::json::parse(known);
  }
  base::log_info("trial {} of {}: temperature {} ({})", index + 1, config.distill.trials,
                 trial.distill.temperature.first, trial.run.dir);
  const train::TrainingResult own = run_trial(trial, [this](train::TrainingOptions& options) {
    options.checkpoint.enabled = false;
    options.tokenizer.clear();  // it is for checkpoints
    if (options.role.kind == parallel::RoleKind::teacher) {
      options.valid_sources.clear();  // only students are ranked
    }
    if (has_run) {
      options.observe_step = nullptr;  // one judgement of the pace is enough
    }
  });
  has_run = true;
  stopped = own.stopped;
  if (!stopped.empty()) {
    return std::nullopt;
  }
  nlohmann::json result = gather(own, trial);
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      nlohmann::json stored = result;
      stored["identity"] = identity;
      write_whole(trial.run.dir + "/result.json", stored.dump(2));
    }
  });
  return result;
}

double loss_of(const nlohmann::json& entry) {
  return entry["loss"].is_number() ? entry["loss"].get<double>() : std::numeric_limits<double>::infinity();
}

// The trials of one student, best first; equal ones as they were tried.
nlohmann::json rank_trials(const std::vector<nlohmann::json>& trials, const std::string& student) {
  std::vector<nlohmann::json> entries;
  for (const nlohmann::json& trial : trials) {
    nlohmann::json entry = trial.at("students").at(student);
    entry["trial"] = trial.at("trial");
    entry["temperature"] = trial.at("temperature");
    entries.push_back(std::move(entry));
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const nlohmann::json& a, const nlohmann::json& b) { return loss_of(a) < loss_of(b); });
  return entries;
}

std::string number_text(const nlohmann::json& value, int decimals) {
  return value.is_number() ? fmt::format("{:.{}f}", value.get<double>(), decimals) : "-";
}

std::string describe_ranking(const config::RunConfig& config, const std::string& student,
                             const nlohmann::json& ranking) {
  std::string text = fmt::format("{}: {} trials of {} steps by held-out loss, best first\n", student,
                                 ranking.size(), config.distill.trial_steps);
  text += fmt::format("{:>4} {:>12} {:>14} {:>12} {:>10}  {}\n", "", "temperature", "held-out loss",
                      "perplexity", "kd loss", "trial");
  for (std::size_t i = 0; i < ranking.size(); ++i) {
    const nlohmann::json& entry = ranking[i];
    text += fmt::format("{:>4} {:>12} {:>14} {:>12} {:>10}  trials/{}\n", i + 1,
                        fmt::format("{}", entry["temperature"].get<double>()), number_text(entry["loss"], 4),
                        number_text(entry["perplexity"], 2), number_text(entry["kd_loss"], 4),
                        entry["trial"].get<std::string>());
  }
  return text;
}

std::string setting_for(double temperature) {
  return fmt::format("distill.temperature={} distill.temperature_step=0", temperature);
}

// What to set, and whether the best may lie outside of what was tried.
std::string describe_best(const std::string& student, double best, const std::vector<double>& tried) {
  std::string text = fmt::format("best for {}: set {}\n", student, setting_for(best));
  if (best == tried.front()) {
    text += "it is the lowest that was tried: a lower distill.temperature_min would look further\n";
  } else if (best == tried.back()) {
    text += "it is the highest that was tried\n";
  }
  return text;
}

}  // namespace

void check_search_folder(const config::RunConfig& config) {
  const std::string dir =
      config.checkpoint.dir.empty() ? config.run.dir + "/checkpoints" : config.checkpoint.dir;
  if (!checkpoint::list_checkpoints(dir).empty()) {
    throw base::CannotCreateError(
        "run.dir={} has checkpoints of a run in {} (a search keeps none and would mix with it) choose "
        "another "
        "run.dir for the search",
        config.run.dir, dir);
  }
}

CommandResult search_temperature(const config::RunConfig& config, const parallel::RoleSplit& roles,
                                 const parallel::Communicator& world, const TrialRunner& run_trial) {
  Search search{config, roles, world, run_trial, false, ""};
  const std::vector<double> temperatures = config::trial_temperatures(config);
  std::vector<nlohmann::json> trials;
  for (std::size_t i = 0; i < temperatures.size() && search.stopped.empty(); ++i) {
    if (std::optional<nlohmann::json> trial = search.find_or_run(i)) {
      trials.push_back(std::move(*trial));
    }
  }
  CommandResult result{"", {{"search", "temperature"}, {"trial_steps", config.distill.trial_steps}}};
  result.json["stopped"] = search.stopped;
  if (!search.stopped.empty()) {
    result.exit_code = base::ExitCode::requeue;
    result.text = fmt::format("stopped after {} of {} trials ({}): give the same command again to go on\n",
                              trials.size(), temperatures.size(), search.stopped);
  }
  for (const config::RoleConfig& role : config.roles) {
    if (role.kind != parallel::RoleKind::student || trials.empty()) {
      continue;
    }
    const nlohmann::json ranking = rank_trials(trials, role.name);
    const double best = ranking[0]["temperature"].get<double>();
    result.json["students"][role.name] = {
        {"ranking", ranking}, {"best", ranking[0]}, {"set", setting_for(best)}};
    result.text += describe_ranking(config, role.name, ranking);
    result.text += search.stopped.empty() ? describe_best(role.name, best, temperatures) : "";
  }
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      write_whole(config.run.dir + "/search.json", result.json.dump(2));
    }
  });
  return result;
}

}  // namespace athanor::app
