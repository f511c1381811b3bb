// A student whose teacher falls silent.
#include "train/teacher_loss.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.hpp"
#include "support/mpi_test.hpp"
#include "train/student_case.hpp"

namespace athanor::train {
namespace {

using athanor::tests::world;
using tests::Case;
using tests::expect_close;
using tests::make_student;
using tests::on;
using tests::run;
using tests::take_step;

TEST(TeacherLoss, OneSilentRankTakesAllAlongToLabels) {
  Case setup = on(world());
  setup.student.on_teacher_loss = OnTeacherLoss::labels;
  int farewells = 0;
  setup.student.say_farewell = [&] { ++farewells; };
  setup.silence = {2, false, [](int rank) { return rank == world().size() - 1; }};
  const std::unique_ptr<Trainer> trainer = make_student(setup);
  for (std::int64_t step = 0; step < 4; ++step) {
    const StepMetrics metrics = take_step(*trainer);
    EXPECT_EQ(trainer->objective().is_alone(), step >= 2);
    EXPECT_EQ(metrics.figures.at("teacherless_steps"),
              std::max<double>(0.0, static_cast<double>(step) - 1.0));
    EXPECT_FALSE(metrics.skipped);
    EXPECT_EQ(metrics.figures.at("kd_loss") > 0.0, step < 2);
    EXPECT_EQ(metrics.figures.at("alpha"), step < 2 ? 0.6 : 0.0);
    if (step >= 2) {
      expect_close(metrics.total_loss, metrics.loss, "labels alone");
    }
  }
  EXPECT_EQ(farewells, world().rank() == 0 ? 1 : 0);
  EXPECT_EQ(trainer->state().updates, 4);
}

TEST(TeacherLoss, AMissingTrailerCostsOneStepAtMost) {
  Case setup = on(world());
  setup.student.on_teacher_loss = OnTeacherLoss::labels;
  setup.silence = {1, true};
  std::vector<StepMetrics> history = run(setup, 3);
  EXPECT_TRUE(history[1].skipped);  // nobody knows how the teacher's step ended
  EXPECT_FALSE(history[2].skipped);
  setup.silence.ranks = [](int rank) { return rank != 0; };
  history = run(setup, 3);
  EXPECT_FALSE(history[1].skipped);
  EXPECT_EQ(history[2].figures.at("kd_loss") > 0.0, world().size() == 1);
}

TEST(TeacherLoss, StopsWithTheCodeForStartingAgain) {
  Case setup = on(world());
  setup.silence = {1, false};
  const std::unique_ptr<Trainer> trainer = make_student(setup);
  take_step(*trainer);
  try {
    take_step(*trainer);
    FAIL() << "the step went on";
  } catch (const TeacherLost& lost) {
    EXPECT_EQ(lost.exit_code(), base::ExitCode::requeue);
    EXPECT_NE(std::string(lost.what()).find("step 1"), std::string::npos);
  }
}

}  // namespace
}  // namespace athanor::train
