// Both ends of a teacher link with known contents, for tests of it.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "distill/link/signal_packet.hpp"
#include "distill/link/teacher_link.hpp"
#include "distill/link_fixture.hpp"

namespace athanor::distill::tests {

constexpr std::int64_t batch = 12;
constexpr std::int64_t seq = 5;
constexpr double patience_s = 60.0;

inline int ranks_of(const Split& split) {
  return split.dp * split.tp;
}

// One run of the link: the teacher on the first ranks, then each student.
struct Scenario {
  Split teacher;
  std::vector<Split> students;
  std::int64_t window = 1;
  std::int64_t first_step = 0;
  std::int64_t steps = 4;
  int teacher_delay_ms = 0;  // at most, at random places
  int student_delay_ms = 0;

  int num_ranks() const {
    int ranks = ranks_of(teacher);
    for (const Split& student : students) {
      ranks += ranks_of(student);
    }
    return ranks;
  }
};

inline bool has_head(std::int64_t step) {
  return step % 3 != 2;
}

inline StepOutcome outcome_of(std::int64_t step) {
  return step % 4 == 1 ? StepOutcome::skipped : StepOutcome::finite;
}

inline ControlWord control_of(std::int64_t step) {
  return step % 2 == 1 ? ControlWord::cut : ControlWord::go;
}

inline void sleep_up_to(int milliseconds, std::mt19937& random) {
  if (milliseconds > 0) {
    const auto pause = std::uniform_int_distribution<int>(0, milliseconds * 1000)(random);
    std::this_thread::sleep_for(std::chrono::microseconds(pause));
  }
}

// The roles of a scenario as every rank sees them.
class Roles {
 public:
  explicit Roles(const Scenario& scenario) {
    teacher_ = make_layout("teacher", 0, scenario.teacher, batch, seq);
    int first = ranks_of(scenario.teacher);
    for (const Split& split : scenario.students) {
      students_.push_back(make_layout("student", first, split, batch, seq));
      first += ranks_of(split);
      plans_.push_back(
          {make_plan(teacher_, students_.back(), true), make_plan(teacher_, students_.back(), false)});
    }
  }
  const RoleLayout& teacher() const { return teacher_; }
  const std::vector<RoleLayout>& students() const { return students_; }
  // With a head in some steps only.
  PlanOfStep plan_of(std::size_t student) const {
    return [plans = plans_[student]](std::int64_t step) { return plans[has_head(step) ? 0 : 1]; };
  }
  std::vector<PlanOfStep> all_plans() const {
    std::vector<PlanOfStep> plans;
    for (std::size_t i = 0; i < students_.size(); ++i) {
      plans.push_back(plan_of(i));
    }
    return plans;
  }

 private:
  RoleLayout teacher_;
  std::vector<RoleLayout> students_;
  std::vector<std::vector<std::shared_ptr<const LinkPlan>>> plans_;
};

// The tensors of one teacher rank for a micro-batch, or for the step.
struct SentFields {
  std::vector<std::vector<std::int64_t>> tensors;
  std::vector<FieldView> views;
};

inline SentFields fields_of(const LinkPlan& plan, int rank, Cadence cadence, std::int64_t micro,
                            std::int64_t step) {
  SentFields sent;
  sent.tensors.reserve(plan.fields().size());
  for (const Field& field : plan.fields()) {
    if (field.cadence == cadence) {
      Box memory = field.sender[static_cast<std::size_t>(rank)].memory;
      if (cadence == Cadence::micro_batch) {
        memory = memory.with_rows(plan.sender().micro_batch_rows(rank, micro));
      }
      sent.tensors.push_back(tensor_of(field, memory, step));
      sent.views.push_back({field.name, std::as_bytes(std::span(sent.tensors.back()))});
    }
  }
  return sent;
}

inline void send_step(
    SignalSender& sender, const Roles& roles, int rank, std::int64_t step,
    const std::function<void()>& between = [] {}) {
  const auto plan = roles.plan_of(0)(step);
  sender.begin_step({step, step + 7, control_of(step)});
  for (std::int64_t micro = 0; micro < roles.teacher().num_micro_batches(rank); ++micro) {
    const SentFields sent = fields_of(*plan, rank, Cadence::micro_batch, micro, step);
    sender.send_rows(micro, tags_of(roles.teacher().micro_batch_rows(rank, micro), batch, step), sent.views);
    between();
  }
  EXPECT_EQ(sender.wants("head"), has_head(step));
  if (sender.wants("head")) {
    sender.send_step_fields(fields_of(*plan, rank, Cadence::step, 0, step).views);
  }
  between();
  sender.end_step(outcome_of(step));
}

inline std::vector<std::int64_t> values_of(const ReceivedField& field) {
  std::vector<std::int64_t> values(field.bytes.size() / sizeof(std::int64_t));
  if (!values.empty()) {
    std::memcpy(values.data(), field.bytes.data(), field.bytes.size());
  }
  return values;
}

inline void expect_step(const ReceivedStep& received, const LinkPlan& plan, int rank, std::int64_t step) {
  EXPECT_EQ(received.step, step);
  EXPECT_EQ(received.teacher_version, step + 7);
  EXPECT_EQ(received.control, control_of(step));
  ASSERT_EQ(received.fields.size(), plan.fields().size());
  for (const Field& field : plan.fields()) {
    const FieldShare& share = field.receiver[static_cast<std::size_t>(rank)];
    const ReceivedField& got = received.field(field.name);
    EXPECT_EQ(got.shape[0] * got.shape[1] * got.shape[2], share.memory.numel());
    ASSERT_EQ(values_of(got), needed_of(field, share, step)) << field.name << " of step " << step;
  }
}

inline LinkOptions options_of(const Scenario& scenario) {
  return {scenario.window, scenario.first_step, scenario.first_step + scenario.steps, patience_s};
}

}  // namespace athanor::distill::tests
