// A small student without another role: its trainer, an invented teacher, and what tests change of them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "support/synthetic_batches.hpp"
#include "train/invented_teacher.hpp"
#include "train/student_objective.hpp"
#include "train/trainer.hpp"

namespace athanor::train::tests {

inline athanor::tests::SyntheticData data() {
  return {53, 9, 8, 9, false};
}

// A student on the ranks of `role`, and what it is told.
struct Case {
  const parallel::Communicator* role = nullptr;
  int tp = 1;
  std::int64_t micro = 0;  // 0: all rows of a replica
  int experts = 0;
  std::vector<distill::Phase> phases;
  distill::AttentionLossKind attention_loss = distill::AttentionLossKind::kl;
  StudentOptions student;
  Silence silence;
  std::int64_t gap_every = 0;
};

inline distill::Phase joint_phase() {
  distill::Phase phase;
  phase.name = "joint";
  phase.hidden.base = 0.8;
  phase.attention.base = 0.2;
  phase.alpha = {distill::AlphaKind::constant, 0.6, 0.6};
  phase.temperature = {.first = 2.0, .step_change = 0.0};
  phase.codec.kind = distill::PayloadKind::full;
  return phase;
}

inline distill::RoleLayout layout_of(const std::string& name, int ranks, int tp, std::int64_t micro) {
  distill::RoleLayout layout;
  layout.name = name;
  layout.world_ranks.resize(static_cast<std::size_t>(ranks));
  std::iota(layout.world_ranks.begin(), layout.world_ranks.end(), 0);
  layout.dp = ranks / tp;
  layout.tp = tp;
  layout.micro_batch = micro;
  layout.global_batch = data().global_batch;
  layout.seq = data().seq;
  return layout;
}

inline TrainerOptions trainer_options(const Case& setup) {
  TrainerOptions options;
  options.role.name = "student";
  options.role.kind = parallel::RoleKind::student;
  options.role.model.vocab_size = 53;
  options.role.model.layers = 2;
  options.role.model.hidden = 16;
  options.role.model.heads = 4;
  options.role.model.kv_heads = 4;
  options.role.model.max_seq = 16;
  options.role.model.ffn = 24;
  options.role.model.init_std = 0.1;
  options.role.model.moe.num_experts = setup.experts;
  options.role.model.moe.top_k = 2;
  options.role.model.moe.ffn = 8;
  options.role.compute = base::ComputeType::f64;
  options.role.optim.lr = 5e-3;
  options.role.optim.schedule = optim::ScheduleKind::constant;
  options.role.tp = setup.tp;
  const std::int64_t dp = setup.role->size() / setup.tp;
  options.role.micro_batch = setup.micro > 0 ? setup.micro : data().global_batch / dp;
  options.global_batch = data().global_batch;
  options.seq = data().seq;
  options.total_steps = 100;
  options.seed = 5;
  return options;
}

inline std::shared_ptr<SignalOptions> signal_options(const Case& setup, const TrainerOptions& trainer) {
  auto options = std::make_shared<SignalOptions>();
  options->phases = setup.phases.empty() ? std::vector{joint_phase()} : setup.phases;
  for (distill::Phase& phase : options->phases) {
    phase.attention_loss = setup.attention_loss;
  }
  options->total_steps = 10;
  options->domains = {"text"};
  options->teacher = trainer.role.model;
  options->teacher.hidden = 12;
  options->teacher.heads = 8;
  options->teacher.kv_heads = 4;
  options->teacher.head_dim = 2;
  options->teacher_type = at::kDouble;
  options->teacher_layout = layout_of("teacher", 1, 1, data().global_batch);
  options->students.push_back({layout_of("student", setup.role->size(), setup.tp, trainer.role.micro_batch),
                               distill::checked_pairs({{1, 0, 1.0}}, 2, 2),
                               distill::checked_pairs({{0, 1, 1.0}}, 2, 2)});
  options->seed = 3;
  options->gap_every = setup.gap_every;
  options->gap_fraction = 0.3;
  return options;
}

inline std::unique_ptr<Trainer> make_student(const Case& setup) {
  const TrainerOptions options = trainer_options(setup);
  const std::shared_ptr<SignalOptions> signals = signal_options(setup, options);
  StudentOptions student = setup.student;
  student.model = options.role.model;
  student.type = at::kDouble;
  const SignalSourceFactory source = [signals, silence = setup.silence](const SourceStart& start) {
    return std::make_unique<InventedTeacher>(signals, start, silence);
  };
  auto trainer = std::make_unique<Trainer>(
      options, *setup.role,
      [&](const model::Transformer&, parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid) {
        return std::make_unique<StudentObjective>(signals, student, parameters, grid, source);
      });
  trainer->objective().start(0, {});
  return trainer;
}

inline StepMetrics take_step(Trainer& trainer) {
  return trainer.step(athanor::tests::synthetic_step(
      data(), trainer.replica(), trainer.options().role.micro_batch, trainer.state().step));
}

inline std::vector<StepMetrics> run(const Case& setup, std::int64_t steps) {
  const std::unique_ptr<Trainer> trainer = make_student(setup);
  std::vector<StepMetrics> history;
  for (std::int64_t step = 0; step < steps; ++step) {
    history.push_back(take_step(*trainer));
  }
  return history;
}

inline Case on(const parallel::Communicator& role) {
  Case setup;
  setup.role = &role;
  return setup;
}

inline void expect_close(double ours, double theirs, const std::string& what) {
  EXPECT_NEAR(ours, theirs, 1e-9 * std::max(std::abs(theirs), 1e-6)) << what;
}

}  // namespace athanor::train::tests
