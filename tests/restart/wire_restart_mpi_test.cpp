// Contract 3 with rounded gradients: what error feedback owes is part of the state.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "contracts/restart_case.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

Case wire_case(bool feedback) {
  Case test = restart_case(base::ComputeType::f32);
  test.role.grad_wire = {base::WireType::fp8, base::Fp8Format::e4m3, feedback};
  test.role.model.moe.wire = {base::WireType::fp8, base::WireType::bf16, base::Fp8Format::e4m3};
  test.steps = 8;
  return test;
}

// Trains from the newest checkpoint of `folder` until `until`, and saves there.
RunRecord run_job(const Case& test, const Layout& layout, std::int64_t until, const std::string& folder,
                  std::vector<double>& norms) {
  train::Trainer trainer(trainer_options(test, layout), world());
  train::resume({}, folder, {}, trainer, world());
  train::JobCheckpoints checkpoints(make_job(folder, false, until, until), trainer, world());
  while (trainer.state().step < until) {
    norms.push_back(train_step(test, trainer).grad_norm);
  }
  checkpoints.save();
  checkpoints.finish();
  return collect_record(trainer, world());
}

TEST(ExactRestart, RoundedGradientsAndWhatTheyOweGoOnBitForBit) {
  const int ranks = world().size();
  for (const bool feedback : {false, true}) {
    const Case test = wire_case(feedback);
    const Layout layout{ranks, 1, ranks == 2 ? 2 : 1, 1, 1};
    const RunFolder whole_folder("wire_whole", world()), folder("wire_parts", world());
    std::vector<double> whole_norms, norms;
    const RunRecord whole = run_job(test, layout, 8, whole_folder.path(), whole_norms);
    run_job(test, layout, 3, folder.path(), norms);
    const RunRecord resumed = run_job(test, layout, 8, folder.path(), norms);
    EXPECT_EQ(norms, whole_norms);
    for (const auto& [name, value] : whole.parameters) {
      EXPECT_TRUE(at::equal(value, resumed.parameters.at(name))) << name;
    }
  }
}

/// Sum over the holders of what is owed, over all parameters.
double total_residual(train::Trainer& trainer) {
  double sum = 0.0;
  for (const optim::ResidualState& entry : trainer.optimizer().residual_state()) {
    sum += entry.residual.to(at::kDouble).sum().item<double>();
  }
  return parallel::all_reduce_sum(sum, world());
}

TEST(ExactRestart, AnotherLayoutTakesOverWhatIsOwed) {
  const int ranks = world().size();
  if (ranks < 2) {
    return;  // one rank rounds nothing
  }
  const Case test = wire_case(true);
  const RunFolder folder("wire_layouts", world());
  double owed = 0.0;
  {
    train::Trainer trainer(trainer_options(test, {ranks, 1, 1, 1, 1}), world());
    train::JobCheckpoints checkpoints(make_job(folder.path(), false, 2, 2), trainer, world());
    train_step(test, trainer);
    train_step(test, trainer);
    owed = total_residual(trainer);
    checkpoints.save();
    checkpoints.finish();
  }
  EXPECT_NE(owed, 0.0);
  // The same number of holders, then half as many with tp = 2 where that divides.
  for (const int tp : {1, 2}) {
    const Layout layout{ranks, ranks % tp == 0 ? tp : 1, 1, 1, 1};
    train::Trainer trainer(trainer_options(test, layout), world());
    train::resume({}, folder.path(), {}, trainer, world());
    EXPECT_EQ(trainer.state().step, 2);
    if (layout.tp == 1) {
      EXPECT_NEAR(total_residual(trainer), owed, 1e-5 * std::abs(owed));
    }
    EXPECT_TRUE(std::isfinite(train_step(test, trainer).grad_norm));
  }
}

}  // namespace
}  // namespace athanor::tests
