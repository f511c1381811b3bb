// `athanor distill`: a teacher and its students train together, each role with a layout of its own.
#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "app/commands.hpp"
#include "app/distill_search.hpp"
#include "app/distill_setup.hpp"
#include "app/job_watch.hpp"
#include "app/pair_report.hpp"
#include "app/recorded_teacher.hpp"
#include "app/role_setup.hpp"
#include "app/training_job.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "config/recording_plan.hpp"
#include "config/roles.hpp"
#include "data/dataset.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/point_to_point.hpp"
#include "parallel/run_agreed.hpp"
#include "train/student_objective.hpp"
#include "train/teacher_objective.hpp"

namespace athanor::app {
namespace {

std::vector<std::string> domain_names(const config::RunConfig& config) {
  return data::Dataset({.sources = data::parse_sources(config.data.train), .seq = config.batch.seq})
      .domain_names();
}

// The first student without a teacher leads the job; the others hear from it.
train::ObjectiveFactory make_replay_factory(const config::RunConfig& config, std::size_t role,
                                            const std::shared_ptr<train::SignalOptions>& signals,
                                            parallel::PointToPoint& wire) {
  const train::StudentOptions student = make_student_options(config, role);
  train::ReplayOptions replay;
  replay.recording = std::make_shared<const distill::signal_file::MappedRecording>(config.distill.source);
  const auto word = std::make_shared<distill::ControlWord>(distill::ControlWord::go);
  const bool leads = student.index == 0;
  if (leads) {
    std::vector<int> others;
    for (std::size_t i = 1; i < signals->students.size(); ++i) {
      const std::vector<int>& ranks = signals->students[i].layout.world_ranks;
      others.insert(others.end(), ranks.begin(), ranks.end());
    }
    replay.word = train::leading_words(word, std::move(others), wire);
  } else {
    const int leader = signals->students[0].layout.world_ranks[0];
    replay.word = train::following_words(leader, signals->deadline_s, wire);
  }
  return [signals, student, replay, word, leads](
             const model::Transformer&, parallel::ParameterMap& parameters,
             const parallel::ProcessGrid& grid) -> std::unique_ptr<train::Objective> {
    train::SignalSourceFactory source =
        train::make_recorded_source(replay, signals, student.index, grid.role());
    if (leads) {
      return std::make_unique<train::LeadingStudent>(word, signals, student, parameters, grid,
                                                     std::move(source));
    }
    return std::make_unique<train::StudentObjective>(signals, student, parameters, grid, std::move(source));
  };
}

train::ObjectiveFactory make_objective_factory(const config::RunConfig& config, std::size_t role,
                                               const std::shared_ptr<train::SignalOptions>& signals,
                                               parallel::PointToPoint& wire) {
  if (config::is_replay(config)) {
    return make_replay_factory(config, role, signals, wire);
  }
  if (role == 0) {
    return [signals, &wire](const model::Transformer& model, parallel::ParameterMap&,
                            const parallel::ProcessGrid& grid) -> std::unique_ptr<train::Objective> {
      return std::make_unique<train::TeacherObjective>(signals, model, grid, wire);
    };
  }
  train::StudentOptions student = make_student_options(config, role);
  student.say_farewell = [signals, &wire] { train::say_farewell(wire, signals->teacher_layout.world_ranks); };
  std::optional<train::RecordingOptions> recording;
  if (!config.distill.record.empty() && student.index == 0) {
    recording = make_recording_options(config);
  }
  return [signals, student, recording, &wire](
             const model::Transformer&, parallel::ParameterMap& parameters,
             const parallel::ProcessGrid& grid) -> std::unique_ptr<train::Objective> {
    train::SignalSourceFactory source = train::make_link_source(signals, student.index, wire);
    if (recording) {
      source =
          train::make_recording_source(std::move(source), *recording, signals, student.index, grid.role());
    }
    return std::make_unique<train::StudentObjective>(signals, student, parameters, grid, std::move(source));
  };
}

// Index in the configuration of the first role that has ranks.
std::size_t first_role(const config::RunConfig& config) {
  return config::is_replay(config) ? 1 : 0;
}

// <run.dir>/teacher, <run.dir>/student or <run.dir>/student.a: metrics of a role.
std::string metrics_dir(const config::RunConfig& config, std::size_t role) {
  return config.run.dir + "/" + config.roles[role].name;
}

// The results of all roles, from the first rank of each.
CommandResult gather_results(const config::RunConfig& config, const parallel::RoleSplit& roles,
                             const train::TrainingResult& own, const train::PairFigures& pace,
                             const parallel::Communicator& world) {
  nlohmann::json own_json = to_json(own);
  own_json["pace"] = to_json(pace);
  const std::vector<std::string> jsons = parallel::all_gather_strings(own_json.dump(), world);
  const std::vector<std::string> texts = parallel::all_gather_strings(to_text(own), world);
  CommandResult result{"", nlohmann::json::object(), exit_code_of(own)};
  for (std::size_t i = first_role(config); i < config.roles.size(); ++i) {
    const auto place = static_cast<int>(i - first_role(config));
    const auto first = static_cast<std::size_t>(roles.first_world_rank(place));
    const std::string& name = config.roles[i].name;
    result.json[name] = nlohmann::json::parse(jsons[first]);
    const model::ParameterCount count = model::count_parameters(config.roles[i].model);
    result.json[name]["parameters"] = count.total;
    result.json[name]["active_parameters"] = count.active;
    result.text += fmt::format("--- {} ({:.1f} M parameters, {:.1f} M active)\n{}", name, count.total / 1e6,
                               count.active / 1e6, texts[first]);
  }
  add_pair_report(config, result);
  return result;
}

void log_lines(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    base::log_info("{}", line);
  }
}

// This rank's part of a run: one link from its start to its end.
train::TrainingResult train_role(const config::RunConfig& config, const parallel::RoleSplit& roles,
                                 const parallel::Communicator& world, train::PairFit& fit,
                                 const std::function<void(train::TrainingOptions&)>& adjust) {
  const std::size_t role = first_role(config) + static_cast<std::size_t>(roles.role_index());
  parallel::PointToPoint wire(world, "signals");
  const std::shared_ptr<train::SignalOptions> signals =
      make_signal_options(config, roles, domain_names(config));
  train::TrainingOptions options = make_training_options(config, config.roles[role]);
  options.metrics_dir = metrics_dir(config, role);
  options.signals = describe_signals(config);
  options.make_objective = make_objective_factory(config, role, signals, wire);
  options.observe_step = [&fit](const train::StepMetrics& metrics) { fit.add(metrics); };
  // A step may begin before a wish reaches the leader, one carries its word, students are a window behind.
  options.stop.steps_ahead = 2 + config.distill.window;
  if (adjust) {
    adjust(options);
  }
  return train::run_training(options, world, roles.comm());
}

}  // namespace

CommandResult run_distill(const config::RunConfig& config, const parallel::Communicator& world) {
  std::optional<checkpoint::RunLock> lock;
  const parallel::RoleSplit roles = split_roles(config, world);
  const bool is_search = config.distill.search != config::SearchKind::none;
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      check_data_files(config);
      check_recording(config);
      const CommandResult fit = describe_pair(config, config::resolve_ranks(config, world.size()));
      if (is_search) {
        check_search_folder(config);
      }
      lock.emplace(prepare_run_folder(config));
      log_lines(fit.text);
      for (std::size_t i = first_role(config); i < config.roles.size() && !is_search; ++i) {
        std::filesystem::create_directories(metrics_dir(config, i));
      }
    }
  });
  const std::size_t role = first_role(config) + static_cast<std::size_t>(roles.role_index());
  if (world.rank() != 0) {
    base::configure_log(
        {.print_once = false,
         .local_prefix = roles.comm().rank() == 0
                             ? config.roles[role].name
                             : fmt::format("{} rank {}", config.roles[role].name, roles.comm().rank())});
  }
  JobWatch watch(config, config.roles[role].name, world);
  train::PairFit fit(make_pair_fit_options(roles));
  if (is_search) {
    CommandResult found =
        search_temperature(config, roles, world, [&](const config::RunConfig& trial, const auto& adjust) {
          return train_role(trial, roles, world, fit, adjust);
        });
    watch.finish(world);
    return found;
  }
  const train::TrainingResult result = train_role(config, roles, world, fit, {});
  fit.finish();
  CommandResult gathered = gather_results(config, roles, result, fit.figures(), world);
  watch.finish(world);
  return gathered;
}

}  // namespace athanor::app
