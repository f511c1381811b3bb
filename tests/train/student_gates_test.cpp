// The state of a student's gates.
#include "train/student_gates.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.hpp"

namespace athanor::train {
namespace {

GateOptions all_options() {
  GateOptions options;
  options.uses_maturity = options.uses_difficulty = options.balances_losses = true;
  options.stopping = {.patience = 3, .min_improvement = 0.5};
  options.evaluate_every = 2;
  return options;
}

// A step of a stage with the distribution.
StudentStep step_of(std::int64_t number, const distill::Phase& phase, const distill::ReceivedStep& received) {
  StudentStep step;
  step.given.step = number;
  step.settings.numbers.phase = &phase;
  step.received = &received;
  step.labels = 10.0;
  step.held_out_labels = 3.0;
  return step;
}

TEST(StudentGates, StateGoesThroughTextWithoutALoss) {
  const distill::Phase phase;
  const distill::ReceivedStep received;
  StudentGates gates(all_options());
  bool has_stopped = false;
  for (std::int64_t step = 0; step < 12; ++step) {
    const double x = 1.0 / (3.0 + static_cast<double>(step));
    const StudentMeans means{4.0 - x, 3.0 + x, 2.0 / 3.0 + x, 0.1 * x, 0.0, 7.0 * x};
    StudentGates copy(all_options());
    copy.restore(gates.state());
    EXPECT_EQ(copy.state(), gates.state());
    const bool stops = gates.update(step_of(step, phase, received), means, step == 4);
    EXPECT_EQ(copy.update(step_of(step, phase, received), means, step == 4), stops);
    EXPECT_EQ(copy.state(), gates.state());
    has_stopped = has_stopped || stops;
    EXPECT_EQ(gates.has_stopped(), has_stopped);
  }
  EXPECT_TRUE(has_stopped);
  EXPECT_EQ(gates.stopped_at(), 12);  // looks after 6 (the first of its measure), 8, 10, 12
}

TEST(StudentGates, ReadsWhatAnEarlierVersionWrote) {
  StudentGates gates(all_options());
  gates.restore(R"({"student_ce":4.0,"teacher_ce":3.75,"steps":7})");
  EXPECT_DOUBLE_EQ(gates.maturity(), 0.5);
  gates.restore("");
  EXPECT_THROW(gates.restore("{"), base::CheckpointError);
  EXPECT_THROW(gates.restore(R"({"student_ce":4.0})"), base::CheckpointError);
}

}  // namespace
}  // namespace athanor::train
