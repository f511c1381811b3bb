// `athanor distill`: a teacher and its students train together, each role with a layout of its own.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "app/commands.hpp"
#include "app/role_setup.hpp"
#include "app/training_job.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "config/distill_plan.hpp"
#include "config/validate.hpp"
#include "data/dataset.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/dtype.hpp"
#include "parallel/point_to_point.hpp"
#include "parallel/run_agreed.hpp"
#include "train/student_objective.hpp"
#include "train/teacher_objective.hpp"

namespace athanor::app {
namespace {

distill::RoleLayout layout_of(const config::RunConfig& config, const parallel::RoleSplit& roles,
                              std::size_t index) {
  const config::RoleConfig& role = config.roles[index];
  const int ranks = roles.roles()[index].ranks;
  const parallel::ParallelDims dims = config::resolve_dims(role, ranks);
  distill::RoleLayout layout;
  layout.name = role.name;
  for (int rank = 0; rank < ranks; ++rank) {
    layout.world_ranks.push_back(roles.first_world_rank(static_cast<int>(index)) + rank);
  }
  layout.dp = dims.dp;
  layout.tp = dims.tp;
  layout.micro_batch = config::resolve_micro_batch(config, role, dims);
  layout.global_batch = config.batch.global;
  layout.seq = config.batch.seq;
  return layout;
}

std::vector<std::string> domain_names(const config::RunConfig& config) {
  return data::Dataset({.sources = data::parse_sources(config.data.train), .seq = config.batch.seq})
      .domain_names();
}

// The same on every rank; the teacher is the first role.
std::shared_ptr<train::SignalOptions> make_signal_options(const config::RunConfig& config,
                                                          const parallel::RoleSplit& roles) {
  auto options = std::make_shared<train::SignalOptions>();
  options->phases = config::make_phases(config);
  options->total_steps = config.train.steps;
  options->domains = domain_names(config);
  options->state_wire = config.distill.hidden_wire;
  options->fp8_format = config.roles[0].precision.fp8_format;
  options->teacher = config.roles[0].model;
  options->teacher_type = parallel::scalar_type(config.roles[0].precision.compute);
  options->teacher_frozen = config.roles[0].frozen;
  options->teacher_layout = layout_of(config, roles, 0);
  for (std::size_t i = 1; i < config.roles.size(); ++i) {
    options->students.push_back({layout_of(config, roles, i), config::hidden_pairs(config, config.roles[i]),
                                 config::attention_pairs(config, config.roles[i])});
  }
  options->seed = config.run.seed;
  options->window = config.distill.window;
  options->deadline_s = config.distill.deadline_s;
  return options;
}

train::ObjectiveFactory make_objective_factory(const config::RunConfig& config, std::size_t role,
                                               const std::shared_ptr<train::SignalOptions>& signals,
                                               parallel::PointToPoint& wire) {
  if (role == 0) {
    return [signals, &wire](const model::Transformer& model, parallel::ParameterMap&,
                            const parallel::ProcessGrid& grid) -> std::unique_ptr<train::Objective> {
      return std::make_unique<train::TeacherObjective>(signals, model, grid, wire);
    };
  }
  train::StudentOptions student;
  student.index = role - 1;
  student.model = config.roles[role].model;
  student.type = parallel::scalar_type(config.roles[role].precision.compute);
  student.hidden = config.distill.hidden;
  student.uses_maturity_gate = config.distill.maturity_gate;
  student.maturity = config.distill.maturity;
  return [signals, student, &wire](const model::Transformer&, parallel::ParameterMap& parameters,
                                   const parallel::ProcessGrid& grid) -> std::unique_ptr<train::Objective> {
    return std::make_unique<train::StudentObjective>(signals, student, parameters, grid, wire);
  };
}

// <run.dir>/teacher, <run.dir>/student or <run.dir>/student.a: metrics of a role.
std::string metrics_dir(const config::RunConfig& config, std::size_t role) {
  return config.run.dir + "/" + config.roles[role].name;
}

// The results of all roles, from the first rank of each.
CommandResult gather_results(const config::RunConfig& config, const parallel::RoleSplit& roles,
                             const train::TrainingResult& own, const parallel::Communicator& world) {
  const std::vector<std::string> jsons = parallel::all_gather_strings(to_json(own).dump(), world);
  const std::vector<std::string> texts = parallel::all_gather_strings(to_text(own), world);
  CommandResult result{"", nlohmann::json::object()};
  for (std::size_t i = 0; i < config.roles.size(); ++i) {
    const auto first = static_cast<std::size_t>(roles.first_world_rank(static_cast<int>(i)));
    const std::string& name = config.roles[i].name;
    result.json[name] = nlohmann::json::parse(jsons[first]);
    const model::ParameterCount count = model::count_parameters(config.roles[i].model);
    result.json[name]["parameters"] = count.total;
    result.json[name]["active_parameters"] = count.active;
    result.text += fmt::format("--- {} ({:.1f} M parameters, {:.1f} M active)\n{}", name, count.total / 1e6,
                               count.active / 1e6, texts[first]);
  }
  return result;
}

}  // namespace

CommandResult run_distill(const config::RunConfig& config, const parallel::Communicator& world) {
  std::optional<checkpoint::RunLock> lock;
  const parallel::RoleSplit roles = split_roles(config, world);
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      check_data_files(config);
      lock.emplace(prepare_run_folder(config));
      for (std::size_t i = 0; i < config.roles.size(); ++i) {
        std::filesystem::create_directories(metrics_dir(config, i));
      }
    }
  });
  const auto role = static_cast<std::size_t>(roles.role_index());
  if (world.rank() != 0) {
    base::configure_log(
        {.print_once = false,
         .local_prefix = roles.comm().rank() == 0
                             ? config.roles[role].name
                             : fmt::format("{} rank {}", config.roles[role].name, roles.comm().rank())});
  }
  parallel::PointToPoint wire(world, "signals");
  const std::shared_ptr<train::SignalOptions> signals = make_signal_options(config, roles);
  train::TrainingOptions options = make_training_options(config, config.roles[role]);
  options.metrics_dir = metrics_dir(config, role);
  options.make_objective = make_objective_factory(config, role, signals, wire);
  const train::TrainingResult result = train::run_training(options, world, roles.comm());
  return gather_results(config, roles, result, world);
}

}  // namespace athanor::app
