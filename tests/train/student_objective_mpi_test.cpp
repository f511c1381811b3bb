// A student's losses, gates, held-out samples and early stopping, on any layout.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"
#include "train/held_out.hpp"
#include "train/student_case.hpp"

namespace athanor::train {
namespace {

using athanor::tests::world;
using tests::Case;
using tests::data;
using tests::expect_close;
using tests::joint_phase;
using tests::make_student;
using tests::on;
using tests::run;
using tests::take_step;

void expect_same_curve(const std::vector<StepMetrics>& ours, const std::vector<StepMetrics>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const std::string at = " at step " + std::to_string(i);
    expect_close(ours[i].loss, theirs[i].loss, "loss" + at);
    expect_close(ours[i].total_loss, theirs[i].total_loss, "total_loss" + at);
    expect_close(ours[i].grad_norm, theirs[i].grad_norm, "grad_norm" + at);
    ASSERT_EQ(ours[i].figures.size(), theirs[i].figures.size());
    for (const auto& [name, value] : theirs[i].figures) {
      if (name != "link_wait_s") {
        expect_close(ours[i].figures.at(name), value, name + at);
      }
    }
  }
}

// Everything at once.
Case all_mechanisms(const parallel::Communicator& role) {
  Case setup = on(role);
  setup.experts = 4;
  setup.student.held_out = 0.4;
  setup.student.gates.uses_maturity = true;
  setup.student.gates.maturity = {.margin = 2.0, .memory = 0.5};
  setup.student.gates.uses_difficulty = true;
  setup.student.gates.difficulty = {.full_until = 0.5, .zero_from = 1.5};
  setup.student.gates.balances_losses = true;
  setup.student.gates.stopping = {.patience = 2, .min_improvement = 50.0};
  setup.student.gates.evaluate_every = 1;
  setup.gap_every = 2;
  return setup;
}

class Attention : public testing::TestWithParam<distill::AttentionLossKind> {};

TEST_P(Attention, EveryLayoutHasTheCurveOfOneRank) {
  const parallel::Communicator alone;
  Case one = all_mechanisms(alone);
  one.attention_loss = GetParam();
  const std::vector<StepMetrics> reference = run(one, 5);
  EXPECT_GT(reference[1].figures.at("held_out_kd_loss"), 0.0);
  EXPECT_LT(reference[1].figures.at("alpha_gate"), 1.0);
  EXPECT_LT(reference[1].figures.at("gap"), 1e-12);  // codec full
  EXPECT_GT(reference[1].figures.at("gap_full_kl"), 0.1);
  EXPECT_EQ(reference[0].figures.count("gap"), 0u);
  EXPECT_EQ(reference[4].figures.at("stopped_early"), 1.0);
  for (const auto& [tp, micro] : {std::pair(1, 2), std::pair(world().size(), 3), std::pair(2, 1)}) {
    if (world().size() % tp == 0) {
      SCOPED_TRACE("tp " + std::to_string(tp));
      Case other = all_mechanisms(world());
      other.attention_loss = GetParam();
      other.tp = tp;
      other.micro = micro == 3 && data().global_batch % 3 != 0 ? 4 : micro;
      expect_same_curve(run(other, 5), reference);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Both, Attention,
                         testing::Values(distill::AttentionLossKind::kl, distill::AttentionLossKind::mse));

TEST(HeldOut, SamplesThatAreHeldOutTeachNothing) {
  Case setup = on(world());
  setup.student.held_out = 0.4;
  const std::vector<StepMetrics> held = run(setup, 3);
  setup.student.held_out = 0.0;
  const std::unique_ptr<Trainer> masked = make_student(setup);
  const HeldOutSamples samples(0.4, 3);
  std::int64_t rows = 0;
  for (const StepMetrics& expected : held) {
    std::vector<data::Batch> batches = athanor::tests::synthetic_step(
        data(), masked->replica(), masked->options().role.micro_batch, masked->state().step);
    for (data::Batch& batch : batches) {
      const std::vector<bool> is_held = samples.rows(batch);
      for (std::int64_t row = 0; row < batch.rows; ++row) {
        if (is_held[static_cast<std::size_t>(row)]) {
          ++rows;
          std::fill_n(batch.labels.begin() + row * batch.seq, batch.seq, -100);
        }
      }
    }
    const StepMetrics metrics = masked->step(batches);
    expect_close(metrics.loss, expected.loss, "loss");
    expect_close(metrics.total_loss, expected.total_loss, "total_loss");
    expect_close(metrics.grad_norm, expected.grad_norm, "grad_norm");
    for (const char* name : {"kd_loss", "hidden_loss", "attention_loss", "teacher_loss"}) {
      expect_close(metrics.figures.at(name), expected.figures.at(name), name);
    }
    EXPECT_GT(expected.figures.at("held_out_loss"), 0.0);
    EXPECT_NE(expected.figures.at("held_out_loss"), expected.loss);
  }
  EXPECT_GT(parallel::all_reduce_sum(rows, world()), 0);
}

TEST(HeldOut, AreDrawnByTheTokensInTheirShare) {
  const data::Batch batch = athanor::tests::synthetic_rows(data(), 0, 2000);
  const HeldOutSamples samples(0.25, 3), others(0.25, 4), none(0.0, 3);
  const std::vector<bool> rows = samples.rows(batch);
  EXPECT_NEAR(static_cast<double>(std::ranges::count(rows, true)), 500.0,
              4.0 * std::sqrt(2000 * 0.25 * 0.75));
  EXPECT_NE(rows, others.rows(batch));
  EXPECT_EQ(std::ranges::count(none.rows(batch), true), 0);
  EXPECT_EQ(samples.valid_labels(batch), std::ranges::count(rows, true) * batch.seq);
  data::Batch later = athanor::tests::synthetic_rows(data(), 0, 2000);
  for (std::int64_t& id : later.sample_ids) {
    id += 100000;  // the next epoch
  }
  EXPECT_EQ(rows, samples.rows(later));
}

TEST(HeldOut, ABatchWithoutAnyOtherSampleChangesNothing) {
  Case setup = on(world());
  setup.student.held_out = 0.9999999;
  const std::unique_ptr<Trainer> trainer = make_student(setup);
  const at::Tensor before = trainer->parameters().all().front()->value.detach().clone();
  const StepMetrics metrics = take_step(*trainer);
  EXPECT_TRUE(at::equal(before, trainer->parameters().all().front()->value));
  EXPECT_FALSE(metrics.skipped);
  EXPECT_TRUE(std::isnan(metrics.loss));
  EXPECT_GT(metrics.figures.at("held_out_kd_loss"), 0.0);
}

TEST(Gates, DifficultyFollowsTheTeachersLossOfEachToken) {
  Case setup = on(world());
  setup.student.gates.uses_difficulty = true;
  setup.student.gates.difficulty = {.full_until = 0.5, .zero_from = 1.5, .memory = 0.9};
  const std::vector<StepMetrics> history = run(setup, 2);
  const auto mean_over = [&](std::int64_t step, const auto& value) {
    double sum = 0.0;
    for (std::int64_t sample = step * 8; sample < step * 8 + 8; ++sample) {
      for (std::int64_t position = 0; position < data().seq; ++position) {
        sum += value(tests::invented_ce(sample, position)) / (8.0 * static_cast<double>(data().seq));
      }
    }
    return sum;
  };
  const double mean = mean_over(0, [](double ce) { return ce; });
  expect_close(history[0].figures.at("teacher_loss"), mean, "teacher_loss");
  EXPECT_EQ(history[0].figures.at("alpha_gate"), 1.0);
  expect_close(history[1].figures.at("alpha_gate"),
               mean_over(1, [&](double ce) { return std::clamp(1.5 - ce / mean, 0.0, 1.0); }), "alpha_gate");
}

TEST(Gates, BothGatesMultiply) {
  Case setup = on(world());
  setup.student.gates.uses_difficulty = true;
  setup.student.gates.difficulty = {.full_until = 0.5, .zero_from = 1.5};
  const double difficulty = run(setup, 2)[1].figures.at("alpha_gate");
  setup.student.gates.uses_maturity = true;
  setup.student.gates.maturity = {.margin = 4.0, .memory = 0.5};
  const StepMetrics both = run(setup, 2)[1];
  EXPECT_GT(both.figures.at("maturity_gate"), 0.1);
  EXPECT_LT(both.figures.at("maturity_gate"), 0.9);
  expect_close(both.figures.at("alpha_gate"), difficulty * both.figures.at("maturity_gate"), "alpha_gate");
}

TEST(Balancing, TermsGetTheSizeOfTheDistributions) {
  Case setup = on(world());
  setup.student.gates.balances_losses = true;
  const std::vector<StepMetrics> history = run(setup, 2);
  const auto& first = history[0].figures;
  const auto& second = history[1].figures;
  EXPECT_EQ(first.at("hidden_factor"), 1.0);
  expect_close(second.at("hidden_factor"), first.at("kd_loss") / first.at("hidden_loss"), "hidden_factor");
  expect_close(second.at("attention_factor"),
               std::min(first.at("kd_loss") / first.at("attention_loss"), 100.0), "attention_factor");
  for (const StepMetrics& step : history) {
    const auto& f = step.figures;
    expect_close(step.total_loss,
                 0.4 * step.loss + 0.6 * f.at("kd_loss") + 0.8 * f.at("hidden_factor") * f.at("hidden_loss") +
                     0.2 * f.at("attention_factor") * f.at("attention_loss"),
                 "total_loss");
  }
  distill::Phase features = joint_phase();
  features.kd.base = 0.0;
  setup.phases = {features};
  const std::vector<StepMetrics> alone = run(setup, 2);
  expect_close(alone[1].figures.at("hidden_factor"), alone[0].loss / alone[0].figures.at("hidden_loss"),
               "hidden_factor without a distribution");
}

TEST(Stages, HaveLearningRatesAndWeightsOfTheirOwn) {
  Case setup = on(world());
  setup.phases = {joint_phase(), joint_phase()};
  setup.phases[0].fraction = 0.2;  // 2 of 10 steps
  setup.phases[1].fraction = 0.8;
  setup.phases[1].learning_rate_factor = 0.25;
  setup.phases[1].hidden.warmup_steps = 4;
  const std::vector<StepMetrics> history = run(setup, 4);
  EXPECT_DOUBLE_EQ(history[1].lr, 5e-3);
  EXPECT_DOUBLE_EQ(history[2].lr, 1.25e-3);
  const auto& f = history[3].figures;
  expect_close(history[3].total_loss,
               0.4 * history[3].loss + 0.6 * f.at("kd_loss") + 0.8 * 0.5 * f.at("hidden_loss") +
                   0.2 * f.at("attention_loss"),
               "total_loss");
}

TEST(EarlyStop, LeavesTheStudentAsItIsAndSurvivesARestart) {
  Case setup = on(world());
  setup.student.held_out = 0.4;
  setup.student.gates.stopping = {.patience = 1, .min_improvement = 100.0};
  setup.student.gates.evaluate_every = 2;
  const std::unique_ptr<Trainer> trainer = make_student(setup);
  std::vector<StepMetrics> history;
  std::vector<at::Tensor> values;
  for (std::int64_t step = 0; step < 6; ++step) {
    if (step == 4) {
      for (const auto& parameter : trainer->parameters().all()) {
        values.push_back(parameter->value.detach().clone());
      }
    }
    history.push_back(take_step(*trainer));
    EXPECT_EQ(history.back().figures.at("stopped_early"), step < 4 ? 0.0 : 1.0) << step;
    EXPECT_EQ(history.back().lr, step < 4 ? 5e-3 : 0.0) << step;
    EXPECT_FALSE(history.back().skipped);
    EXPECT_GT(history.back().figures.at("kd_loss"), 0.0);
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_TRUE(at::equal(values[i], trainer->parameters().all()[i]->value));
  }
  EXPECT_EQ(trainer->state().updates, 4);
  EXPECT_EQ(trainer->state().step, 6);
  const std::unique_ptr<Trainer> resumed = make_student(setup);
  resumed->restore(trainer->state());
  EXPECT_EQ(resumed->objective().state(), trainer->objective().state());
  EXPECT_EQ(take_step(*resumed).figures.at("stopped_early"), 1.0);
}

TEST(EarlyStop, AnotherTemperatureIsAnotherMeasure) {
  Case setup = on(world());
  setup.student.held_out = 0.4;
  setup.student.gates.stopping = {.patience = 1, .min_improvement = 100.0};
  setup.student.gates.evaluate_every = 1;
  distill::Phase phase = joint_phase();
  phase.temperature = {.first = 5.0, .step_change = -0.5, .period_steps = 2};
  setup.phases = {phase};
  // Each level begins with the step that changes it: two looks, the second is no improvement.
  const std::vector<StepMetrics> history = run(setup, 3);
  EXPECT_EQ(history[2].figures.at("stopped_early"), 1.0);
  phase.temperature.period_steps = 1;
  setup.phases = {phase};
  for (const StepMetrics& step : run(setup, 6)) {
    EXPECT_EQ(step.figures.at("stopped_early"), 0.0);
  }
}

}  // namespace
}  // namespace athanor::train
