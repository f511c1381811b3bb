#include "app/distill_setup.hpp"

#include <utility>

#include "config/distill_plan.hpp"
#include "config/recording_plan.hpp"
#include "config/validate.hpp"
#include "parallel/dtype.hpp"
#include "train/recorded_source.hpp"

namespace athanor::app {
namespace {

distill::RoleLayout layout_of(const config::RunConfig& config, const parallel::RoleSplit& roles,
                              std::size_t index) {
  const config::RoleConfig& role = config.roles[index];
  const std::size_t place = index - (config::is_replay(config) ? 1 : 0);  // a recorded teacher has none
  const int ranks = roles.roles()[place].ranks;
  const parallel::ParallelDims dims = config::resolve_dims(role, ranks);
  distill::RoleLayout layout;
  layout.name = role.name;
  for (int rank = 0; rank < ranks; ++rank) {
    layout.world_ranks.push_back(roles.first_world_rank(static_cast<int>(place)) + rank);
  }
  layout.dp = dims.dp;
  layout.tp = dims.tp;
  layout.micro_batch = config::resolve_micro_batch(config, role, dims);
  layout.global_batch = config.batch.global;
  layout.seq = config.batch.seq;
  return layout;
}

}  // namespace

std::shared_ptr<train::SignalOptions> make_signal_options(const config::RunConfig& config,
                                                          const parallel::RoleSplit& roles,
                                                          std::vector<std::string> domains) {
  auto options = std::make_shared<train::SignalOptions>();
  options->phases = config::make_phases(config);
  options->total_steps = config.train.steps;
  options->domains = std::move(domains);
  options->state_wire = config.distill.hidden_wire;
  options->fp8_format = config.roles[0].precision.fp8_format;
  options->teacher = config.roles[0].model;
  options->teacher_type = parallel::scalar_type(config.roles[0].precision.compute);
  options->teacher_frozen = config.roles[0].frozen;
  options->teacher_layout = config::is_replay(config)
                                ? train::absent_teacher(config.batch.global, config.batch.seq)
                                : layout_of(config, roles, 0);
  options->record_temperatures = config::record_temperatures(config);
  for (std::size_t i = 1; i < config.roles.size(); ++i) {
    options->students.push_back({layout_of(config, roles, i), config::hidden_pairs(config, config.roles[i]),
                                 config::attention_pairs(config, config.roles[i])});
  }
  options->seed = config.run.seed;
  options->window = config.distill.window;
  options->overlap_sends = config.distill.overlap_sends;
  options->deadline_s = config.distill.deadline_s;
  options->gap_every = config.distill.gap_every;
  options->gap_fraction = config.distill.gap_fraction;
  options->students_may_leave = config.distill.on_teacher_loss == config::OnTeacherLoss::labels;
  return options;
}

train::StudentOptions make_student_options(const config::RunConfig& config, std::size_t role) {
  train::StudentOptions student;
  student.index = role - 1;
  student.model = config.roles[role].model;
  student.type = parallel::scalar_type(config.roles[role].precision.compute);
  student.hidden = config.distill.hidden;
  student.gates.uses_maturity = config.distill.maturity_gate;
  student.gates.maturity = config.distill.maturity;
  student.gates.uses_difficulty = config.distill.difficulty_gate;
  student.gates.difficulty = config.distill.difficulty;
  student.gates.balances_losses = config.distill.balance_losses;
  student.gates.stopping = config.distill.stopping;
  student.gates.evaluate_every = config.train.eval_every;
  student.held_out = config.distill.held_out;
  student.on_teacher_loss = config.distill.on_teacher_loss == config::OnTeacherLoss::labels
                                ? train::OnTeacherLoss::labels
                                : train::OnTeacherLoss::stop;
  return student;
}

}  // namespace athanor::app
