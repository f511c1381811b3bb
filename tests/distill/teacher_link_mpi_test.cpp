// The stream from teacher ranks to student ranks: contents, bytes, any layouts, windows and delays, several
// students.
#include "distill/link/teacher_link.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "base/fault_point.hpp"
#include "distill/link_fixture.hpp"
#include "distill/teacher_link_fixture.hpp"
#include "parallel/traffic.hpp"
#include "support/mpi_test.hpp"

namespace athanor::distill {
namespace {

using namespace tests;  // the fixture
using athanor::tests::world;
using parallel::Communicator;
using parallel::PointToPoint;

// What this rank sent by its routes, by the formula of the plan.
std::int64_t planned_bytes(const Roles& roles, int rank, std::int64_t first, std::int64_t end) {
  std::int64_t bytes = 0;
  for (std::int64_t step = first; step < end; ++step) {
    for (std::size_t student = 0; student < roles.students().size(); ++student) {
      bytes += wire_bytes_of(roles.plan_of(student)(step)->routes_from(rank));
    }
  }
  return bytes;
}

void run_teacher(PointToPoint& wire, const Scenario& scenario, const Roles& roles,
                 const Communicator& group) {
  std::mt19937 random(static_cast<unsigned>(wire.rank()));
  SignalSender sender(wire, group.rank(), roles.all_plans(), options_of(scenario));
  const std::int64_t end = scenario.first_step + scenario.steps;
  const std::int64_t most_micros = batch / roles.teacher().micro_batch + 2;
  for (std::int64_t step = scenario.first_step; step < end; ++step) {
    std::int64_t meetings = 0;
    send_step(sender, roles, group.rank(), step, [&] {
      sleep_up_to(scenario.teacher_delay_ms, random);
      group.barrier();  // as the teacher's own collectives: no replica runs ahead of the others
      ++meetings;
    });
    for (; meetings < most_micros; ++meetings) {
      group.barrier();
    }
  }
  sender.finish();
  EXPECT_EQ(sender.stats().steps, scenario.steps);
  EXPECT_EQ(sender.stats().sent_bytes, planned_bytes(roles, group.rank(), scenario.first_step, end));
  EXPECT_EQ(sender.stats().last_step_sent_bytes, planned_bytes(roles, group.rank(), end - 1, end));
}

void run_student(PointToPoint& wire, const Scenario& scenario, const Roles& roles, std::size_t student,
                 const Communicator& group) {
  std::mt19937 random(static_cast<unsigned>(100 + wire.rank()));
  const PlanOfStep plan_of = roles.plan_of(student);
  SignalReceiver receiver(wire, group.rank(), plan_of, options_of(scenario));
  SignalSource& source = receiver;
  const Range rows = roles.students()[student].rows_of(group.rank());
  std::int64_t planned = 0;
  std::int64_t credits = 0;
  for (std::int64_t step = scenario.first_step; step < scenario.first_step + scenario.steps; ++step) {
    sleep_up_to(scenario.student_delay_ms, random);
    const ReceivedStep& received = source.wait_step(step, tags_of(rows, batch, step));
    ASSERT_NO_FATAL_FAILURE(expect_step(received, *plan_of(step), group.rank(), step));
    group.barrier();
    EXPECT_EQ(source.wait_trailer(step), outcome_of(step));
    sleep_up_to(scenario.student_delay_ms, random);
    source.release(step);
    const auto routes = plan_of(step)->routes_to(group.rank());
    planned += wire_bytes_of(routes);
    credits += credit_bytes * std::ssize(routes);
    EXPECT_EQ(source.stats().last_step_received_bytes, wire_bytes_of(routes));
  }
  EXPECT_EQ(source.stats().steps, scenario.steps);
  EXPECT_EQ(source.stats().received_bytes, planned);
  EXPECT_EQ(source.stats().sent_bytes, credits);
}

// Runs a scenario on the first ranks of the world; the others only take part in what is collective.
void run(const Scenario& scenario) {
  ASSERT_LE(scenario.num_ranks(), world().size());
  const Roles roles(scenario);
  int role = -1;
  for (std::size_t i = 0; i < roles.students().size(); ++i) {
    const auto& ranks = roles.students()[i].world_ranks;
    if (std::find(ranks.begin(), ranks.end(), world().rank()) != ranks.end()) {
      role = static_cast<int>(i) + 1;
    }
  }
  const bool is_teacher = world().rank() < roles.teacher().num_ranks();
  const Communicator group = world().split(is_teacher ? 0 : role, 0, "group");
  const std::int64_t before = world().traffic().bytes(parallel::Traffic::link);
  PointToPoint wire(world(), "link");
  if (is_teacher) {
    run_teacher(wire, scenario, roles, group);
    EXPECT_EQ(world().traffic().bytes(parallel::Traffic::link) - before,
              planned_bytes(roles, group.rank(), scenario.first_step, scenario.first_step + scenario.steps));
  } else if (role > 0) {
    run_student(wire, scenario, roles, static_cast<std::size_t>(role - 1), group);
  }
  world().barrier();
}

// All pairs of layouts that fill the world, with micro-batches that do not fit each other.
std::vector<Scenario> pairs_of_layouts() {
  std::vector<Scenario> scenarios;
  for (int teachers = 1; teachers < world().size(); ++teachers) {
    const int students = world().size() - teachers;
    for (int teacher_tp = 1; teacher_tp <= teachers; ++teacher_tp) {
      for (int student_tp = 1; student_tp <= students; ++student_tp) {
        if (teachers % teacher_tp == 0 && students % student_tp == 0) {
          const Split teacher{teachers / teacher_tp, teacher_tp, teachers == 2 ? 3 : 2};
          scenarios.push_back({teacher, {Split{students / student_tp, student_tp, 4}}});
        }
      }
    }
  }
  return scenarios;
}

std::string describe(const Scenario& s) {
  return fmt::format("teacher dp {} tp {}, student dp {} tp {}, window {}", s.teacher.dp, s.teacher.tp,
                     s.students[0].dp, s.students[0].tp, s.window);
}

TEST(TeacherLink, EveryPairOfLayoutsGetsEveryElement) {
  for (Scenario scenario : pairs_of_layouts()) {
    for (const std::int64_t window : {1, 8}) {
      scenario.window = window;
      SCOPED_TRACE(describe(scenario));
      ASSERT_NO_FATAL_FAILURE(run(scenario));
    }
  }
}

TEST(TeacherLink, DelaysOnEitherSideChangeNothing) {
  for (Scenario scenario : pairs_of_layouts()) {
    scenario.steps = 5;
    scenario.first_step = 40;  // a resumed run
    for (const std::int64_t window : {1, 8}) {
      scenario.window = window;
      scenario.teacher_delay_ms = 3;
      scenario.student_delay_ms = window == 1 ? 0 : 10;
      SCOPED_TRACE(describe(scenario));
      ASSERT_NO_FATAL_FAILURE(run(scenario));
    }
  }
}

// The student reads rows in order, the teacher's replicas make theirs at the same time and wait for each
// other after every micro-batch: a window of samples would block the second replica, and with it the first.
TEST(TeacherLink, ReplicasInLockStepDoNotDeadlockAtWindowOne) {
  if (world().size() < 3) {
    return;
  }
  for (const std::int64_t micro : {1, 2, 6}) {
    const Scenario scenario{{2, 1, micro}, {Split{1, 1, 5}}};
    SCOPED_TRACE(micro);
    ASSERT_NO_FATAL_FAILURE(run(scenario));
  }
}

TEST(TeacherLink, OneTeacherServesSeveralStudents) {
  if (world().size() < 3) {
    return;
  }
  const int teachers = world().size() - 2;
  for (const std::int64_t window : {1, 3}) {
    Scenario scenario{{teachers, 1, 2}, {Split{1, 1, 3}, Split{1, 1, 4}}};
    scenario.window = window;
    scenario.student_delay_ms = 2;
    ASSERT_NO_FATAL_FAILURE(run(scenario));
  }
}

// Both ends on one rank, without MPI.
TEST(TeacherLink, OneRankTalksToItself) {
  Scenario scenario{{1, 1, 5}, {Split{1, 1, 3}}};
  scenario.steps = 6;
  scenario.window = 2;
  const Roles roles(scenario);
  RoleLayout teacher = make_layout("teacher", 0, scenario.teacher, batch, seq);
  RoleLayout student = make_layout("student", 0, scenario.students[0], batch, seq);
  const PlanOfStep plan_of = [with = make_plan(teacher, student),
                              without = make_plan(teacher, student, false)](std::int64_t step) {
    return has_head(step) ? with : without;
  };
  PointToPoint wire(Communicator{}, "self");
  SignalReceiver receiver(wire, 0, plan_of, options_of(scenario));
  SignalSender sender(wire, 0, {plan_of}, options_of(scenario));
  for (std::int64_t step = 0; step < scenario.steps; ++step) {
    send_step(sender, roles, 0, step);
    const auto& received = receiver.wait_step(step, tags_of(Range{0, batch}, batch, step));
    ASSERT_NO_FATAL_FAILURE(expect_step(received, *plan_of(step), 0, step));
    EXPECT_EQ(receiver.wait_trailer(step), outcome_of(step));
    receiver.release(step);
  }
  sender.finish();
  EXPECT_EQ(sender.stats().sent_bytes, 0);  // nothing left this rank
  EXPECT_EQ(receiver.stats().received_bytes, 0);
  EXPECT_EQ(receiver.stats().packets, sender.stats().packets);
}

TEST(TeacherLink, FaultPointsDelayEitherEnd) {
  if (world().size() < 2) {
    return;
  }
  base::set_faults(
      "link.begin_step:0:2:sleep=0.2,link.send_rows:*:3:sleep=0.1,link.wait_step:1:1:sleep=0.2,"
      "link.release:*:2:sleep=0.1,link.end_step:0:1:sleep=0.1");
  Scenario scenario{{1, 1, 5}, {Split{1, 1, 3}}};
  scenario.window = 2;
  run(scenario);
  base::set_faults("");
}

}  // namespace
}  // namespace athanor::distill
