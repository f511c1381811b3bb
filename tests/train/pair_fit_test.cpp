// The judgement of the pace of teacher and student, on steps with made-up clocks.
#include "train/pair_fit.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace athanor::train {
namespace {

using testing::HasSubstr;

struct Heard {
  std::vector<std::string> informed;
  std::vector<std::string> warned;
};

PairFitOptions listening(Heard& heard, parallel::RoleKind kind = parallel::RoleKind::student) {
  PairFitOptions options;
  options.kind = kind;
  options.ranks = "teacher.ranks=2, student.ranks=1";
  options.inform = [&heard](const std::string& text) { heard.informed.push_back(text); };
  options.warn = [&heard](const std::string& text) { heard.warned.push_back(text); };
  return options;
}

StepMetrics step_of(double total_s, double wait_s, double loss = 4.0) {
  StepMetrics metrics;
  metrics.times.total_s = total_s;
  metrics.loss = loss;
  metrics.figures = {{"link_wait_s", wait_s}, {"link_bytes", 1000.0}, {"teacher_loss", loss - 0.5}};
  return metrics;
}

void add_steps(PairFit& fit, int steps, double total_s, double wait_s) {
  for (int i = 0; i < steps; ++i) {
    fit.add(step_of(total_s, wait_s));
  }
}

TEST(PairFit, WarnsOnceOfAMuchSlowerTeacher) {
  Heard heard;
  PairFit fit(listening(heard));
  add_steps(fit, 10, 1.2, 1.0);  // the first one does not count
  EXPECT_TRUE(heard.warned.empty());
  add_steps(fit, 50, 1.2, 1.0);
  fit.finish();
  ASSERT_EQ(heard.warned.size(), 1u);
  EXPECT_THAT(heard.warned[0], HasSubstr("the teacher takes 6.0 times as long"));
  EXPECT_THAT(heard.warned[0], HasSubstr("give the teacher more ranks"));
  EXPECT_THAT(heard.warned[0], HasSubstr("teacher.ranks=2, student.ranks=1"));
}

TEST(PairFit, WarnsTheTeacherOfASlowStudent) {
  Heard heard;
  PairFit fit(listening(heard, parallel::RoleKind::teacher));
  add_steps(fit, 12, 0.9, 0.8);
  ASSERT_EQ(heard.warned.size(), 1u);
  EXPECT_THAT(heard.warned[0], HasSubstr("a student takes 9.0 times as long"));
  EXPECT_THAT(heard.warned[0], HasSubstr("give the students more ranks"));
}

TEST(PairFit, SaysThePaceOfAGoodPair) {
  Heard heard;
  PairFit fit(listening(heard));
  add_steps(fit, 11, 1.0, 0.75);  // 4 times
  EXPECT_TRUE(heard.warned.empty());
  ASSERT_EQ(heard.informed.size(), 1u);
  EXPECT_THAT(heard.informed[0], HasSubstr("waits 75 % of it for the teacher"));
  add_steps(fit, 100, 1.0, 0.95);  // bad on the whole
  fit.finish();
  EXPECT_EQ(heard.informed.size(), 1u);
  EXPECT_EQ(heard.warned.size(), 1u);
}

TEST(PairFit, AFewLongWaitsAreNoPace) {
  Heard heard;
  PairFit fit(listening(heard));
  for (int i = 0; i < 11; ++i) {
    fit.add(i % 4 == 0 ? step_of(20.0, 19.9) : step_of(0.11, 0.01));
  }
  EXPECT_TRUE(heard.warned.empty());
  EXPECT_EQ(heard.informed.size(), 1u);
}

TEST(PairFit, ShortJobsAreJudgedAtTheirEnd) {
  Heard heard;
  PairFit fit(listening(heard));
  add_steps(fit, 7, 1.0, 0.9);
  EXPECT_TRUE(heard.warned.empty());
  fit.finish();
  EXPECT_EQ(heard.warned.size(), 1u);
  Heard silence;
  PairFit shorter(listening(silence));
  add_steps(shorter, 3, 1.0, 0.9);
  shorter.finish();
  EXPECT_TRUE(silence.warned.empty() && silence.informed.empty());
}

TEST(PairFit, FiguresLeaveTheFirstStepOut) {
  PairFit fit({});
  fit.add(step_of(100.0, 90.0, 9.0));
  EXPECT_EQ(fit.figures().step_s, 100.0);  // better than nothing
  add_steps(fit, 20, 0.5, 0.2);
  const PairFigures figures = fit.figures();
  EXPECT_EQ(figures.steps, 20);
  EXPECT_NEAR(figures.step_s, 0.5, 1e-12);
  EXPECT_NEAR(figures.busy_s(), 0.3, 1e-12);
  EXPECT_NEAR(figures.wait_share(), 0.4, 1e-12);
  EXPECT_NEAR(figures.link_bytes, 1000.0, 1e-9);
  EXPECT_NEAR(figures.loss, 4.0, 1e-12);  // of the last 10
  EXPECT_NEAR(figures.teacher_loss, 3.5, 1e-12);
}

TEST(PairFit, NothingIsKnownWithoutSteps) {
  PairFit fit({});
  fit.finish();
  const PairFigures figures = fit.figures();
  EXPECT_EQ(figures.steps, 0);
  EXPECT_EQ(figures.wait_share(), 0.0);
  EXPECT_EQ(figures.pace_ratio(), 1.0);
  EXPECT_TRUE(std::isnan(figures.loss));
  Heard heard;
  PairFit teacher(listening(heard, parallel::RoleKind::teacher));
  StepMetrics metrics = step_of(1.0, 0.1);
  metrics.figures.erase("teacher_loss");
  teacher.add(metrics);
  EXPECT_TRUE(std::isnan(teacher.figures().teacher_loss));
}

}  // namespace
}  // namespace athanor::train
