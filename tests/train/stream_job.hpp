// A small pair of teacher and student for tests of whole steps over the link.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "distill/codec.hpp"
#include "support/mpi_test.hpp"
#include "train/bench_stream.hpp"

namespace athanor::tests {

/// A dense teacher on the first ranks of the world and a dense student on the rest, in f32.
struct StreamJob {
  distill::PayloadKind codec = distill::PayloadKind::hidden;
  bool frozen = false;
  int teacher_ranks = 1;
  int student_tp = 1;
  std::int64_t teacher_micro_batch = 2;
  std::int64_t student_micro_batch = 4;
  std::int64_t vocab = 53;
  std::int64_t global_batch = 8;
  std::int64_t seq = 12;
  std::int64_t window = 2;
  std::int64_t warmup_steps = 1;
  std::int64_t rounds = 2;
  std::int64_t steps_per_round = 2;

  static constexpr std::int64_t teacher_hidden = 16, student_hidden = 8;
  static constexpr std::int64_t top_k = 4, samples = 6;

  int student_ranks() const { return world().size() - teacher_ranks; }
  bool is_teacher() const { return world().rank() < teacher_ranks; }
  parallel::RoleSplit roles() const {
    return {world(),
            {{"teacher", parallel::RoleKind::teacher, teacher_ranks},
             {"student", parallel::RoleKind::student, student_ranks()}}};
  }

  train::RoleOptions role(bool teacher) const {
    train::RoleOptions role;
    role.name = teacher ? "teacher" : "student";
    role.kind = teacher ? parallel::RoleKind::teacher : parallel::RoleKind::student;
    role.model.vocab_size = vocab;
    role.model.layers = 2;
    role.model.hidden = teacher ? teacher_hidden : student_hidden;
    role.model.heads = 2;
    role.model.kv_heads = 2;
    role.model.ffn = 16;
    role.model.max_seq = seq;
    role.model.moe.num_experts = 0;
    role.tp = teacher ? 1 : student_tp;
    role.micro_batch = teacher ? teacher_micro_batch : student_micro_batch;
    role.frozen = teacher && frozen;
    return role;
  }

  distill::RoleLayout layout(bool teacher) const {
    distill::RoleLayout layout;
    layout.name = teacher ? "teacher" : "student";
    const int ranks = teacher ? teacher_ranks : student_ranks();
    for (int rank = 0; rank < ranks; ++rank) {
      layout.world_ranks.push_back((teacher ? 0 : teacher_ranks) + rank);
    }
    layout.tp = role(teacher).tp;
    layout.dp = ranks / layout.tp;
    layout.micro_batch = role(teacher).micro_batch;
    layout.global_batch = global_batch;
    layout.seq = seq;
    return layout;
  }

  train::BenchStreamOptions options() const {
    train::BenchStreamOptions options;
    options.warmup_steps = warmup_steps;
    options.rounds = rounds;
    options.steps_per_round = steps_per_round;
    options.signals = std::make_shared<train::SignalOptions>();
    train::SignalOptions& signals = *options.signals;
    distill::Phase phase;
    phase.name = "joint";
    phase.hidden.base = 0.5;
    phase.temperature = {.first = 2.0, .step_change = 0.0};
    phase.codec = {codec, top_k, samples};
    signals.phases = {phase};
    signals.domains = {"synthetic"};
    signals.teacher = role(true).model;
    signals.teacher_frozen = frozen;
    signals.window = window;
    signals.teacher_layout = layout(true);
    signals.students.push_back({layout(false), distill::checked_pairs({{1, 1, 1.0}}, 2, 2), {}});
    options.trainer.role = role(is_teacher());
    options.trainer.global_batch = global_batch;
    options.trainer.seq = seq;
    if (!is_teacher()) {
      options.student.emplace();
      options.student->model = role(false).model;
    }
    options.formula_payload_bytes = payload_bytes();
    return options;
  }

  /// Of a step: what a rank has of the vocabulary or of the positions is sent to it alone, the rest to all tp
  /// ranks.
  std::int64_t payload_bytes() const {
    const std::int64_t tokens = global_batch * seq;
    const std::int64_t states = distill::state_bytes_per_token(teacher_hidden, base::WireType::full, 4);
    const std::int64_t for_all = tokens * student_tp;
    const std::int64_t bytes = for_all * 4 + tokens * states;
    switch (codec) {
      case distill::PayloadKind::full:
        return bytes + tokens * distill::full_bytes_per_token(vocab, 4);
      case distill::PayloadKind::hidden:
        return bytes + for_all * states +
               (frozen ? 0 : layout(false).dp * distill::head_bytes(vocab, teacher_hidden, 4));
      case distill::PayloadKind::topk:
        return bytes + for_all * distill::topk_bytes_per_token(top_k, 1, 4);
      case distill::PayloadKind::sampled:
        return bytes + for_all * distill::sampled_bytes_per_token(samples, 1, 4);
      case distill::PayloadKind::none:
        break;
    }
    return bytes;
  }

  train::BenchStreamResult run() const { return train::bench_stream(options(), world(), roles()); }
};

}  // namespace athanor::tests
