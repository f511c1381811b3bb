// Contract 6 (determinism): the overlap of communication changes no bit and no byte of whole runs; contract 3
// (exact restart) holds with it.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <limits>

#include "contracts/restart_case.hpp"
#include "contracts/run_record.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

Case overlap_case(base::ComputeType compute) {
  Case test = restart_case(compute);
  test.name = "overlap";
  test.steps = 5;
  test.role.model.moe.num_experts = 16;
  test.role.model.layers = 3;
  test.data.global_batch = 16;
  test.role.optim.bucket_elements = 1024;  // many
  return test;
}

void set_overlap(Case& test, bool reduce, bool gather) {
  test.role.optim.overlap_reduce = reduce;
  test.role.optim.overlap_gather = gather;
}

void expect_equal_tensors(const std::map<std::string, at::Tensor>& ours,
                          const std::map<std::string, at::Tensor>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (const auto& [name, value] : theirs) {
    EXPECT_TRUE(at::equal(ours.at(name), value)) << name;
  }
}

void expect_equal_records(const RunRecord& ours, const RunRecord& theirs) {
  ASSERT_EQ(ours.steps.size(), theirs.steps.size());
  for (std::size_t i = 0; i < ours.steps.size(); ++i) {
    const train::StepMetrics& our = ours.steps[i];
    const train::StepMetrics& their = theirs.steps[i];
    EXPECT_EQ(our.loss, their.loss) << "step " << i + 1;
    EXPECT_EQ(our.grad_norm, their.grad_norm) << "step " << i + 1;
    EXPECT_EQ(our.bytes_sent, their.bytes_sent) << "step " << i + 1;
    EXPECT_EQ(our.wire_losses.underflow, their.wire_losses.underflow) << "step " << i + 1;
  }
  expect_equal_tensors(ours.parameters, theirs.parameters);
  expect_equal_tensors(ours.exp_avg, theirs.exp_avg);
  expect_equal_tensors(ours.exp_avg_sq, theirs.exp_avg_sq);
}

void expect_no_difference(Case test, const Layout& layout) {
  SCOPED_TRACE(layout.describe());
  const RunRecord plain = run_layout(test, layout, world());
  for (const auto& [reduce, gather] :
       {std::pair(true, false), std::pair(false, true), std::pair(true, true)}) {
    SCOPED_TRACE("overlap of " + std::string(reduce ? gather ? "both" : "reduction" : "gather"));
    set_overlap(test, reduce, gather);
    expect_equal_records(run_layout(test, layout, world()), plain);
  }
}

TEST(Overlap, ChangesNoBitOnAnyLayout) {
  const int ranks = world().size();
  const Case test = overlap_case(base::ComputeType::f32);
  for (const Layout& layout :
       {Layout{ranks, 1, 1, 1, 1}, Layout{ranks, 2, 2, 1, 1}, Layout{ranks, 1, 2, 2, 0},
        Layout{ranks, 2, ranks / 2, 2, 1}, Layout{ranks, 1, ranks, 1, 1}}) {
    expect_no_difference(test, layout);
  }
}

TEST(Overlap, ChangesNoBitOfRoundedWiresTiedWeightsAndRecomputation) {
  const int ranks = world().size();
  Case test = overlap_case(base::ComputeType::bf16);
  test.role.grad_wire = {base::WireType::fp8, base::Fp8Format::e4m3, true};
  expect_no_difference(test, {ranks, 1, ranks / 2, 2, 1});
  test.role.grad_wire = {base::WireType::bf16, {}, true};
  test.role.model.tie_embeddings = true;
  test.role.model.recompute = true;
  expect_no_difference(test, {ranks, 2, ranks / 2, 1, 1});
}

TEST(Overlap, ColdExpertsAreReducedToo) {
  Case test = overlap_case(base::ComputeType::f32);
  test.cold_experts = true;
  expect_no_difference(test, {world().size(), 1, world().size() / 2, 1, 1});
}

// As contract 1 has it, over all steps and against one rank.
TEST(Overlap, KeepsLayoutInvariance) {
  Case test = overlap_case(base::ComputeType::f64);
  test.steps = 12;
  set_overlap(test, true, true);
  RunRecord reference;
  if (world().rank() == 0) {
    reference = run_layout(test, Layout{}, parallel::Communicator());
  }
  reference = broadcast_record(reference, 0, world());
  const RunRecord record = run_layout(test, {world().size(), 2, world().size() / 2, 2, 1}, world());
  for (std::size_t i = 0; i < record.steps.size(); ++i) {
    EXPECT_NEAR(record.steps[i].loss, reference.steps[i].loss, 1e-9 * reference.steps[i].loss);
    EXPECT_NEAR(record.steps[i].grad_norm, reference.steps[i].grad_norm, 1e-9 * reference.steps[i].grad_norm);
  }
  for (const auto& [name, expected] : reference.parameters) {
    EXPECT_LE((record.parameters.at(name) - expected).abs().max().item<double>(),
              1e-9 * expected.abs().max().item<double>())
        << name;
  }
}

TEST(Overlap, ASkippedStepChangesNothing) {
  for (const bool overlap : {false, true}) {
    Case test = overlap_case(base::ComputeType::f32);
    test.role.grad_wire = {base::WireType::fp8, base::Fp8Format::e5m2, true};
    set_overlap(test, overlap, overlap);
    const Layout layout{world().size(), 1, world().size() / 2, 1, 1};
    train::Trainer trainer(trainer_options(test, layout), world());
    EXPECT_FALSE(train_step(test, trainer).skipped);
    const at::NoGradGuard no_grad;
    const auto norm = trainer.parameters().find("final_norm.weight");
    ASSERT_NE(norm, nullptr);
    const at::Tensor kept = norm->value.detach().clone();
    if (world().rank() == 1) {
      norm->value.fill_(std::numeric_limits<float>::infinity());
    }
    const train::StepMetrics metrics = train_step(test, trainer);
    EXPECT_TRUE(metrics.skipped);
    norm->value.copy_(kept);
    EXPECT_FALSE(train_step(test, trainer).skipped);
    EXPECT_EQ(trainer.optimizer().updates(), 2);
    for (const auto& parameter : trainer.parameters().all()) {
      EXPECT_TRUE(parameter->value.isfinite().all().item<bool>()) << parameter->name;
    }
  }
}

TEST(Overlap, ARestartRightAfterAStepIsExact) {
  Case test = overlap_case(base::ComputeType::bf16);
  test.role.grad_wire = {base::WireType::fp8, base::Fp8Format::e4m3, true};
  set_overlap(test, true, true);
  const Layout layout{world().size(), 1, world().size() / 2, 2, 1};
  const RunRecord whole = run_layout(test, layout, world());
  const RunFolder folder("overlap", world());
  RunRecord record;
  {
    train::Trainer trainer(trainer_options(test, layout), world());
    train::JobCheckpoints checkpoints(make_job(folder.path(), true, 0, 0), trainer, world());
    for (int step = 0; step < 3; ++step) {
      record.steps.push_back(train_step(test, trainer));
    }
    checkpoints.save();  // parameters are still on their way
    train_step(test, trainer);
    checkpoints.finish();
  }
  train::Trainer trainer(trainer_options(test, layout), world());
  ASSERT_TRUE(train::resume({}, folder.path(), {}, trainer, world()));
  EXPECT_EQ(trainer.state().step, 3);
  std::vector<train::StepMetrics> steps = std::move(record.steps);
  for (int step = 3; step < test.steps; ++step) {
    steps.push_back(train_step(test, trainer));
  }
  record = collect_record(trainer, world());
  record.steps = std::move(steps);
  expect_equal_records(record, whole);
}

}  // namespace
}  // namespace athanor::tests
