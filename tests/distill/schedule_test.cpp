// Phases, schedules, gates, balancer and token weights.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "distill/gates.hpp"
#include "distill/phase.hpp"
#include "distill/schedules.hpp"
#include "distill/token_weights.hpp"

namespace athanor::distill {
namespace {

TEST(Schedules, WeightWarmsUpThenDecaysByPeriods) {
  const WeightSchedule weight{.base = 2.0, .decay = 0.5, .warmup_steps = 4, .period_steps = 3};
  EXPECT_DOUBLE_EQ(weight.at(0), 0.5);
  EXPECT_DOUBLE_EQ(weight.at(3), 2.0);
  EXPECT_DOUBLE_EQ(weight.at(6), 2.0);
  EXPECT_DOUBLE_EQ(weight.at(7), 1.0);
  EXPECT_DOUBLE_EQ(weight.at(10), 0.5);
  EXPECT_THROW(validate(WeightSchedule{.base = -1.0}, "hidden"), base::ConfigError);
  EXPECT_THROW(validate(WeightSchedule{.decay = 0.0}, "hidden"), base::ConfigError);
  EXPECT_THROW(validate(WeightSchedule{.period_steps = 0}, "hidden"), base::ConfigError);
}

TEST(Schedules, AlphaGoesFromItsFirstToItsLastValue) {
  for (const AlphaKind kind : {AlphaKind::linear, AlphaKind::cosine}) {
    const AlphaSchedule alpha{kind, 0.9, 0.5};
    EXPECT_DOUBLE_EQ(alpha.at(0.0), 0.9);
    EXPECT_NEAR(alpha.at(0.5), 0.7, 1e-15);
    EXPECT_DOUBLE_EQ(alpha.at(1.0), 0.5);
  }
  EXPECT_DOUBLE_EQ((AlphaSchedule{AlphaKind::constant, 0.9, 0.5}).at(0.7), 0.9);
  const AlphaSchedule wsd{AlphaKind::wsd, 0.9, 0.5};
  EXPECT_DOUBLE_EQ(wsd.at(0.0), 0.0);
  EXPECT_DOUBLE_EQ(wsd.at(0.1), 0.9);
  EXPECT_DOUBLE_EQ(wsd.at(0.79), 0.9);
  EXPECT_NEAR(wsd.at(0.9), 0.7, 1e-12);
  EXPECT_NEAR(wsd.at(1.0), 0.5, 1e-12);
  EXPECT_THROW(validate(AlphaSchedule{AlphaKind::linear, 1.1, 0.5}), base::ConfigError);
  EXPECT_THROW(validate(AlphaSchedule{AlphaKind::linear, 0.9, std::nan("")}), base::ConfigError);
}

TEST(Schedules, TemperatureFallsByPeriodsAndNeverBelowItsMinimum) {
  TemperatureSchedule temperature{.first = 5.0, .step_change = -0.5, .period_steps = 10, .minimum = 1.0};
  temperature.by_domain = {{"code", 1.75}, {"prose", 2.5}};
  EXPECT_DOUBLE_EQ(temperature.at(9), 5.0);
  EXPECT_DOUBLE_EQ(temperature.at(10), 4.5);
  EXPECT_DOUBLE_EQ(temperature.at(79), 1.5);
  EXPECT_DOUBLE_EQ(temperature.at(100000), 1.0);
  EXPECT_DOUBLE_EQ(temperature.at(100000, "code"), 1.75);
  EXPECT_EQ(temperature.in_use(10, {"code", "news", "prose", "code"}), (std::vector<double>{1.75, 2.5, 4.5}));
  EXPECT_EQ(temperature.in_use(10, {}), (std::vector<double>{4.5}));
  EXPECT_NO_THROW(validate(temperature));
  temperature.by_domain["code"] = 0.9;
  EXPECT_THROW(validate(temperature), base::ConfigError);
  EXPECT_THROW(validate(TemperatureSchedule{.first = 0.5}), base::ConfigError);
  EXPECT_THROW(validate(TemperatureSchedule{.minimum = 0.0}), base::ConfigError);
}

std::vector<Phase> three_stages() {
  Phase base;
  base.hidden.base = 1.0;
  return phase_preset("three_stage", base);
}

TEST(Phases, DefaultStagesTakeTheirSharesOfTheSteps) {
  PhaseController controller(three_stages(), 101, 1000);
  std::vector<std::int64_t> steps(3, 0);
  for (std::int64_t step = 0; step < 101; ++step) {
    const PhaseController::Step now = controller.begin_step(step);
    ++steps[static_cast<std::size_t>(now.index)];
    EXPECT_LT(now.progress, 1.0);
  }
  EXPECT_EQ(steps, (std::vector<std::int64_t>{20, 51, 30}));
  EXPECT_EQ(controller.begin_step(500).phase->name, "joint");
}

TEST(Phases, NumbersOfAStep) {
  PhaseController controller(three_stages(), 100, 1000);
  const PhaseController::Step features = controller.begin_step(5);
  EXPECT_EQ(features.ce + features.kd, 0.0);
  EXPECT_DOUBLE_EQ(features.hidden, 0.8);
  EXPECT_DOUBLE_EQ(features.attention, 0.2);
  const PhaseController::Step soft = controller.begin_step(45);
  EXPECT_EQ(soft.step_in_phase, 25);
  EXPECT_DOUBLE_EQ(soft.alpha, 0.7);
  EXPECT_DOUBLE_EQ(soft.ce, 0.3);
  EXPECT_DOUBLE_EQ(soft.kd, 0.7);
  EXPECT_DOUBLE_EQ(soft.hidden, 0.0);
  EXPECT_DOUBLE_EQ(soft.temperature, 5.0);
  EXPECT_DOUBLE_EQ(controller.begin_step(99).hidden, 0.08);
}

TEST(Phases, TheSecondPresetEndsWithTheTask) {
  PhaseController controller(phase_preset("kl_hidden_task", {}), 10, 1000);
  EXPECT_EQ(controller.begin_step(0).ce, 0.0);
  EXPECT_EQ(controller.begin_step(0).kd, 1.0);
  EXPECT_EQ(controller.begin_step(4).hidden, 1.0);
  EXPECT_GT(controller.begin_step(7).ce, 0.0);
}

TEST(Phases, AnEarlyEndMovesTheRestForwardAndIsRestored) {
  PhaseController controller(three_stages(), 100, 1000);
  controller.begin_step(9);
  controller.end_phase(9);
  EXPECT_EQ(controller.begin_step(10).phase->name, "soft_label");
  PhaseController resumed(three_stages(), 100, 1000);
  resumed.restore(controller.state());
  for (std::int64_t step = 11; step < 100; ++step) {
    const PhaseController::Step a = controller.begin_step(step), b = resumed.begin_step(step);
    ASSERT_EQ(a.index, b.index);
    ASSERT_EQ(a.kd, b.kd);
  }
  EXPECT_EQ(controller.state(), resumed.state());
  EXPECT_EQ(controller.state().first_step, 60);
  controller.end_phase(70);  // the last one goes on
  EXPECT_EQ(controller.state().first_step, 60);
  EXPECT_THROW(resumed.restore({.index = 3}), base::ConfigError);
}

TEST(Phases, ListsThatMakeNoRunAreRefused) {
  std::vector<Phase> phases = three_stages();
  phases[0].fraction = 0.3;
  EXPECT_THROW(PhaseController(phases, 100, 1000), base::ConfigError);
  EXPECT_THROW(PhaseController({}, 100, 1000), base::ConfigError);
  EXPECT_THROW(phase_preset("four_stage", {}), base::ConfigError);
  phases = three_stages();
  phases[1].kd_loss.loss = KdLoss::reverse_kl;  // its codec is topk
  EXPECT_THROW(validate(phases, 1000), base::ConfigError);
  phases[1].codec.kind = PayloadKind::hidden;
  EXPECT_NO_THROW(validate(phases, 1000));
  phases[1].codec.kind = PayloadKind::none;
  EXPECT_THROW(validate(phases, 1000), base::ConfigError);
  phases = three_stages();
  EXPECT_THROW(validate(phases, 10), base::ConfigError);  // top_k above the vocabulary
  phases[2].fraction = -0.3;
  EXPECT_THROW(validate(phases, 1000), base::ConfigError);
}

TEST(Gates, MaturityFollowsTheTeachersLead) {
  MaturityGate gate({.margin = 0.5, .memory = 0.5});
  EXPECT_EQ(gate.factor(), 0.0);
  gate.update(4.0, 4.1);
  EXPECT_EQ(gate.factor(), 0.0);
  gate.update(4.0, 3.5);  // teacher's mean 3.8
  EXPECT_NEAR(gate.factor(), 0.4, 1e-12);
  gate.update(std::nan(""), 0.0);
  EXPECT_NEAR(gate.factor(), 0.4, 1e-12);
  MaturityGate again({.margin = 0.5, .memory = 0.5});
  again.restore(gate.state());
  for (MaturityGate* each : {&gate, &again}) {
    each->update(4.0, 0.0);
  }
  EXPECT_EQ(gate.factor(), 1.0);
  EXPECT_EQ(gate.state(), again.state());
  EXPECT_THROW(MaturityGate({.margin = 0.0}), base::ConfigError);
  EXPECT_THROW(MaturityGate({.memory = 1.0}), base::ConfigError);
}

TEST(Gates, DifficultyLowersTokensThatAreHardForTheTeacher) {
  DifficultyGate gate({.full_until = 1.0, .zero_from = 3.0});
  const at::Tensor ce = at::tensor({0.5, 2.0, 4.0, 9.0}, at::kDouble);
  EXPECT_TRUE(at::equal(gate.factors(ce), at::ones({4}, at::kDouble)));
  gate.update(2.0);
  EXPECT_TRUE(at::allclose(gate.factors(ce), at::tensor({1.0, 1.0, 0.5, 0.0}, at::kDouble)));
  EXPECT_THROW(DifficultyGate({.full_until = 3.0, .zero_from = 3.0}), base::ConfigError);
}

TEST(Balancer, BringsTermsToTheReferencesSize) {
  LossBalancer balancer({.memory = 0.0, .limit = 10.0}, 2);
  EXPECT_EQ(balancer.factor(0), 1.0);
  balancer.update({2.0, 0.5, 0.0});
  EXPECT_DOUBLE_EQ(balancer.factor(0), 4.0);
  EXPECT_EQ(balancer.factor(1), 1.0);  // not seen
  balancer.update({2.0, std::nan(""), 0.001});
  EXPECT_DOUBLE_EQ(balancer.factor(0), 4.0);
  EXPECT_DOUBLE_EQ(balancer.factor(1), 10.0);
  LossBalancer again({.memory = 0.0, .limit = 10.0}, 2);
  again.restore(balancer.state());
  EXPECT_EQ(again.factor(0), balancer.factor(0));
  EXPECT_THROW(LossBalancer({}, 1).restore(balancer.state()), base::InternalError);
  EXPECT_THROW(LossBalancer({.limit = 0.5}, 1), base::ConfigError);
}

TEST(EarlyStoppingTest, StopsAfterItsPatience) {
  EarlyStopping stopping({.patience = 2, .min_improvement = 0.1});
  EXPECT_FALSE(stopping.update(0, 5.0));
  EXPECT_FALSE(stopping.update(1, 4.95));
  EXPECT_FALSE(stopping.update(2, 4.8));
  EXPECT_FALSE(stopping.update(3, std::nan("")));
  EXPECT_TRUE(stopping.update(4, 4.75));
  EXPECT_EQ(stopping.state().best_step, 2);
  EarlyStopping never({});
  for (std::int64_t step = 0; step < 100; ++step) {
    EXPECT_FALSE(never.update(step, 1.0));
  }
  EXPECT_THROW(EarlyStopping({.patience = -1}), base::ConfigError);
}

TEST(TokenWeightsTest, WhatTheTeacherDoesNotGetGoesBackToTheLabel) {
  const at::Tensor label = at::tensor({1, 1, 1, 0}, at::kLong).to(at::kBool);
  const at::Tensor teacher = at::tensor({1, 1, 0, 1}, at::kLong).to(at::kBool);
  const at::Tensor gate = at::tensor({1.0, 0.25, std::nan(""), std::nan("")}, at::kDouble);
  const TokenWeights plain = token_weights(label, teacher, gate, at::kDouble,
                                           {.ce = 0.4, .kd = 0.6, .valid_labels = 3, .teacher_labels = 3});
  EXPECT_TRUE(at::allclose(plain.ce_N, at::tensor({0.4, 0.85, 1.0, 0.0}, at::kDouble)));
  EXPECT_TRUE(at::allclose(plain.kd_N, at::tensor({0.6, 0.15, 0.0, 0.0}, at::kDouble)));
  const TokenWeights fewer = token_weights(label, teacher, {}, at::kDouble,
                                           {.ce = 0.4, .kd = 0.6, .valid_labels = 3, .teacher_labels = 2});
  EXPECT_TRUE(at::allclose(fewer.kd_N, at::tensor({0.9, 0.9, 0.0, 0.0}, at::kDouble)));
}

}  // namespace
}  // namespace athanor::distill
