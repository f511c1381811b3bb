// Contract 1 (layout invariance) and 2 (cold ranks are ordinary): every layout follows one rank's curve.
//
// One launch of 8 ranks: the jobs (case, layout) are packed side by side onto split communicators.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <cmath>

#include "contracts/run_record.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

constexpr double f64_tolerance = 1e-9;

train::RoleOptions small_role() {
  train::RoleOptions role;
  role.compute = base::ComputeType::f64;
  role.model.vocab_size = 61;  // no tp > 1 divides it
  role.model.layers = 2;
  role.model.hidden = 24;
  role.model.heads = 12;
  role.model.kv_heads = 2;  // tp 4 and 6 hold a key/value head on several ranks
  role.model.head_dim = 4;
  role.model.ffn = 25;
  role.model.max_seq = 32;
  role.model.init_std = 0.15;
  role.model.moe.num_experts = 24;
  role.model.moe.top_k = 3;
  role.model.moe.ffn = 5;
  role.model.moe.balance_weight = 0.05;
  role.optim.lr = 3e-3;
  role.optim.warmup_steps = 3;
  role.optim.clip = 1.0;
  return role;
}

Case make_case(const std::string& name) {
  Case test;
  test.name = name;
  test.role = small_role();
  test.data.vocab = test.role.model.vocab_size;
  test.data.seq = 13;  // no tp > 1 divides it
  test.data.global_batch = 24;
  return test;
}

std::vector<Case> all_cases() {
  using moe::BalanceKind;
  std::vector<Case> cases;
  cases.push_back(make_case("squared, counts of the batch"));
  Case test = make_case("squared and switch, counts of the micro-step");
  test.role.model.moe.balance = {BalanceKind::squared, BalanceKind::switch_loss};
  test.role.model.moe.balance_counts = moe::BalanceCounts::micro_step;
  test.equal_micro_steps_only = true;
  cases.push_back(test);
  test = make_case("switch, sequence, bias and z");
  test.role.model.moe.balance = {BalanceKind::switch_loss, BalanceKind::sequence, BalanceKind::bias};
  test.role.model.moe.z_weight = 1e-2;
  test.role.model.moe.bias_rate = 0.01;
  cases.push_back(test);
  test = make_case("capacity, earliest kept; shared expert");
  test.role.model.moe.capacity_factor = 0.8;
  test.role.model.moe.shared_experts = 1;
  cases.push_back(test);
  test = make_case("capacity, highest score kept; sigmoid, groups, gates not normalised");
  test.role.model.moe.capacity_factor = 0.8;
  test.role.model.moe.drop = moe::DropPolicy::score;
  test.role.model.moe.score = moe::RouterScore::sigmoid;
  test.role.model.moe.groups = 4;
  test.role.model.moe.group_top_k = 2;
  test.role.model.moe.normalize_top_k = false;
  cases.push_back(test);
  test = make_case("tied embeddings, every second layer dense, documents, recompute, dropout");
  test.role.model.tie_embeddings = true;
  test.role.model.moe.every = 2;
  test.role.model.recompute = true;
  test.role.model.dropout = 0.1;
  test.data.documents = true;
  cases.push_back(test);
  test = make_case("cold experts and ranks");
  test.cold_experts = true;
  cases.push_back(test);
  test = make_case("dense model without query/key norm");
  test.role.model.moe.num_experts = 0;
  test.role.model.qk_norm = false;
  cases.push_back(test);
  return cases;
}

std::vector<Layout> layouts_of(const Case& test) {
  const std::vector<Layout> all = {
      {1, 1, 1, 3, 1}, {2, 1, 2, 1, 1}, {2, 2, 2, 1, 1}, {2, 2, 1, 3, 1}, {2, 1, 1, 1, 0}, {3, 1, 3, 2, 1},
      {3, 1, 1, 1, 1}, {4, 2, 4, 1, 1}, {4, 4, 2, 1, 1}, {4, 1, 2, 2, 0}, {4, 2, 2, 1, 0}, {6, 1, 6, 1, 1},
      {6, 2, 3, 2, 1}, {6, 6, 6, 1, 1}, {8, 2, 8, 1, 1}, {8, 4, 4, 2, 1}, {8, 1, 8, 1, 1}, {8, 2, 2, 3, 1},
  };
  std::vector<Layout> legal;
  for (Layout layout : all) {
    if (test.equal_micro_steps_only) {
      layout.accumulation = 1;
    }
    if (test.role.model.moe.num_experts == 0) {
      layout.ep = 1;
    }
    legal.push_back(layout);
  }
  return legal;
}

double relative(double a, double b) {
  return std::abs(a - b) / std::max(std::abs(b), 1e-300);
}

void expect_same_steps(const RunRecord& run, const RunRecord& reference) {
  ASSERT_EQ(run.steps.size(), reference.steps.size());
  for (std::size_t i = 0; i < run.steps.size(); ++i) {
    SCOPED_TRACE("step " + std::to_string(i + 1));
    const train::StepMetrics& a = run.steps[i];
    const train::StepMetrics& b = reference.steps[i];
    EXPECT_LE(relative(a.loss, b.loss), f64_tolerance) << a.loss << " for " << b.loss;
    EXPECT_LE(relative(a.total_loss, b.total_loss), f64_tolerance) << a.total_loss << " for " << b.total_loss;
    EXPECT_LE(relative(a.grad_norm, b.grad_norm), f64_tolerance) << a.grad_norm << " for " << b.grad_norm;
    EXPECT_EQ(a.expert_counts, b.expert_counts);
    EXPECT_EQ(a.dropped, b.dropped);
    ASSERT_EQ(a.balance_terms.size(), b.balance_terms.size());
    for (const auto& [name, value] : b.balance_terms) {
      EXPECT_LE(relative(a.balance_terms.at(name), value), f64_tolerance) << "balance term " << name;
    }
  }
}

void expect_same_tensors(const std::map<std::string, at::Tensor>& run,
                         const std::map<std::string, at::Tensor>& reference, const char* what) {
  ASSERT_EQ(run.size(), reference.size());
  for (const auto& [name, expected] : reference) {
    const double difference = (run.at(name) - expected).abs().max().item<double>();
    const double scale = expected.abs().max().item<double>();
    EXPECT_TRUE(difference <= f64_tolerance * scale)
        << what << " of " << name << " differs by " << difference << " where the largest is " << scale;
  }
}

void expect_same_run(const RunRecord& run, const RunRecord& reference) {
  expect_same_steps(run, reference);
  expect_same_tensors(run.parameters, reference.parameters, "value");
  expect_same_tensors(run.exp_avg, reference.exp_avg, "first moment");
  expect_same_tensors(run.exp_avg_sq, reference.exp_avg_sq, "second moment");
}

// Runs all layouts of a case, side by side where they fit on the world, against the reference.
void run_all_layouts(const Case& test, const RunRecord& reference) {
  const parallel::Communicator& all = world();
  const std::vector<Layout> layouts = layouts_of(test);
  std::size_t next = 0;
  while (next < layouts.size()) {
    int used = 0;
    int mine = -1;
    const std::size_t round_begin = next;
    while (next < layouts.size() && used + layouts[next].ranks <= all.size()) {
      if (all.rank() >= used && all.rank() < used + layouts[next].ranks) {
        mine = static_cast<int>(next - round_begin);
      }
      used += layouts[next].ranks;
      ++next;
    }
    ASSERT_GT(next, round_begin) << "the world of " << all.size() << " ranks is too small";
    const parallel::Communicator role = all.split(mine, all.rank(), "job");
    if (mine >= 0) {
      const Layout& layout = layouts[round_begin + static_cast<std::size_t>(mine)];
      SCOPED_TRACE(test.name + " at " + layout.describe());
      expect_same_run(run_layout(test, layout, role), reference);
    }
    all.barrier();
  }
}

class LayoutInvariance : public testing::TestWithParam<Case> {};

TEST_P(LayoutInvariance, FollowsOneRank) {
  const Case& test = GetParam();
  RunRecord reference;
  if (world().rank() == 0) {
    reference = run_layout(test, Layout{}, parallel::Communicator());
    // The case must be able to fail: the loss moves, and what it is about happens.
    EXPECT_LT(reference.steps.back().loss, reference.steps.front().loss);
    if (test.role.model.moe.capacity_factor > 0) {
      EXPECT_GT(reference.steps.front().dropped, 0);
    }
  }
  reference = broadcast_record(reference, 0, world());
  run_all_layouts(test, reference);
}

INSTANTIATE_TEST_SUITE_P(Cases, LayoutInvariance, testing::ValuesIn(all_cases()),
                         [](const testing::TestParamInfo<Case>& info) {
                           return "Case" + std::to_string(info.index);
                         });

// In f32: loss of the first 3 steps and grad norm of the first to 1e-5.
TEST(LayoutInvarianceF32, FirstStepsFollowOneRank) {
  Case test = make_case("f32");
  test.role.compute = base::ComputeType::f32;
  test.steps = 3;
  RunRecord reference;
  if (world().rank() == 0) {
    reference = run_layout(test, Layout{}, parallel::Communicator());
  }
  reference = broadcast_record(reference, 0, world());
  const std::vector<Layout> layouts = {{2, 2, 2, 1, 1}, {4, 2, 4, 2, 1}, {8, 4, 8, 1, 0}, {8, 1, 4, 3, 1}};
  for (const Layout& layout : layouts) {
    const int color = world().rank() < layout.ranks ? 0 : -1;
    const parallel::Communicator role = world().split(color, world().rank(), "f32");
    if (color == 0) {
      SCOPED_TRACE(layout.describe());
      const RunRecord run = run_layout(test, layout, role);
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_LE(relative(run.steps[i].loss, reference.steps[i].loss), 1e-5);
      }
      EXPECT_LE(relative(run.steps[0].grad_norm, reference.steps[0].grad_norm), 1e-5);
    }
    world().barrier();
  }
}

// Contract 6: two runs of one layout are bit-identical.
TEST(Determinism, TwoRunsAreBitIdentical) {
  for (const base::ComputeType compute : {base::ComputeType::f32, base::ComputeType::bf16}) {
    Case test = make_case("determinism");
    test.role.compute = compute;
    test.steps = 4;
    const Layout layout{world().size(), world().size() % 2 == 0 ? 2 : 1, 2, 1, 1};
    const RunRecord first = run_layout(test, layout, world());
    const RunRecord second = run_layout(test, layout, world());
    for (std::size_t i = 0; i < first.steps.size(); ++i) {
      EXPECT_EQ(first.steps[i].loss, second.steps[i].loss);
      EXPECT_EQ(first.steps[i].grad_norm, second.steps[i].grad_norm);
    }
    for (const auto& [name, value] : first.parameters) {
      EXPECT_TRUE(at::equal(value, second.parameters.at(name))) << name;
    }
  }
}

}  // namespace
}  // namespace athanor::tests
