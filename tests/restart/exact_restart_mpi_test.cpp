// Contract 3 (exact restart): a run that is stopped and goes on equals the uninterrupted one bit for bit at
// its layout. tests/contracts has other layouts.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <bit>
#include <map>
#include <utility>
#include <vector>

#include "contracts/restart_case.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

struct Stops {
  std::int64_t every = 0;           ///< steps between saves
  std::vector<std::int64_t> after;  ///< the job ends without a word after these steps
  bool async = true;
};

// Bits of every step's loss and gradient norm, as the last job that made the step saw them.
using Curve = std::map<std::int64_t, std::pair<std::uint64_t, std::uint64_t>>;

void note(Curve& curve, const train::StepMetrics& metrics) {
  curve[metrics.step] = {std::bit_cast<std::uint64_t>(metrics.loss),
                         std::bit_cast<std::uint64_t>(metrics.grad_norm)};
}

// One job: goes on from the newest checkpoint, trains until `until`, and is gone. Returns the trainer's
// record.
RunRecord run_job(const Case& test, const Layout& layout, const Stops& stops, std::int64_t until,
                  const std::string& folder, const parallel::Communicator& role, Curve& curve) {
  train::Trainer trainer(trainer_options(test, layout), role);
  train::resume({}, folder, {}, trainer, role);
  train::JobCheckpoints checkpoints(make_job(folder, stops.async, stops.every, test.steps), trainer, role);
  while (trainer.state().step < until) {
    checkpoints.poll();
    const train::StepMetrics metrics = train_step(test, trainer);
    note(curve, metrics);
    if (checkpoints.is_due(metrics.step, 0)) {
      checkpoints.save();
    }
  }
  checkpoints.finish();
  return collect_record(trainer, role);
}

void expect_equal_bits(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b,
                       const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, value] : a) {
    EXPECT_TRUE(at::equal(value, b.at(name))) << what << " of " << name;
  }
}

void check_restart(const Case& test, const Layout& layout, const Stops& stops, const std::string& name,
                   const parallel::Communicator& role) {
  Curve whole_curve;
  RunRecord whole;
  {
    train::Trainer trainer(trainer_options(test, layout), role);
    for (int step = 0; step < test.steps; ++step) {
      note(whole_curve, train_step(test, trainer));
    }
    whole = collect_record(trainer, role);
  }
  const RunFolder folder(name, role);
  Curve curve;
  RunRecord resumed;
  std::vector<std::int64_t> ends = stops.after;
  ends.push_back(test.steps);
  for (const std::int64_t end : ends) {
    resumed = run_job(test, layout, stops, end, folder.path(), role, curve);
  }
  EXPECT_EQ(curve, whole_curve);
  expect_equal_bits(resumed.parameters, whole.parameters, "value");
  expect_equal_bits(resumed.exp_avg, whole.exp_avg, "first moment");
  expect_equal_bits(resumed.exp_avg_sq, whole.exp_avg_sq, "second moment");
}

struct Job {
  base::ComputeType compute;
  Layout layout;
  Stops stops;
};

// f32 and bf16, async and sync, odd rank counts, accumulation, zero on and off.
std::vector<Job> jobs_for(int ranks) {
  switch (ranks) {
    case 1:
      return {{base::ComputeType::f32, {1, 1, 1, 3, 1}, {17, {17, 60}, false}}};
    case 2:
      return {{base::ComputeType::f32, {2, 1, 2, 1, 1}, {20, {7, 45, 46, 133}, true}},
              {base::ComputeType::bf16, {2, 2, 2, 1, 0}, {40, {41, 199}, false}}};
    default:
      return {{base::ComputeType::bf16, {ranks, 1, ranks, 2, 1}, {25, {30, 99, 150}, true}}};
  }
}

TEST(ExactRestart, TwoHundredStepsAreBitIdentical) {
  for (const Job& job : jobs_for(world().size())) {
    Case test = restart_case(job.compute);
    test.steps = 200;
    SCOPED_TRACE(job.layout.describe());
    check_restart(test, job.layout, job.stops, "bits_np" + std::to_string(world().size()), world());
  }
}

}  // namespace
}  // namespace athanor::tests
