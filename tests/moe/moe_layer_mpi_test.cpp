// The sparse layer on every (tp, ep) that the world allows against the same layer on one rank, in f64.
#include <gtest/gtest.h>

#include <string>

#include "moe_fixture.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/reduction_groups.hpp"
#include "support/finite_difference.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

using moe::BalanceCounts;
using moe::BalanceKind;
using moe::DropPolicy;
using moe::MoeOptions;
using parallel::Axis;
using parallel::ReduceOp;
using parallel::Traffic;

constexpr std::int64_t hidden = 8;
constexpr std::int64_t sequences = 12;
constexpr std::int64_t seq = 5;  // tp 2 and 4 pad it; tp 4 leaves a rank without real positions

MoeOptions base_options() {
  MoeOptions options;
  options.num_experts = 12;
  options.top_k = 3;
  options.ffn = 4;
  options.balance_weight = 0.5;
  options.z_weight = 0.2;
  return options;
}

/// The global run: inputs, seeds of the loss, and everything that is the same on all layouts.
struct GlobalRun {
  MoeOptions options = base_options();
  at::Tensor bias_E;
  at::Tensor forced_TK;  ///< of all tokens, or undefined
  at::Tensor x_BSD = random_tensor({sequences, seq, hidden}, 3);
  at::Tensor seed_BSD = random_tensor({sequences, seq, hidden}, 4);
};

struct Outcome {
  at::Tensor y_BSD;  ///< this rank's real positions of its sequences
  at::Tensor dx_BSD;
  double aux = 0;
  moe::LayerStatistics statistics;
};

/// Forward and backward of this rank's part on `grid`.
Outcome run_part(const GlobalRun& run, const LayerUnderTest& test, const parallel::ProcessGrid& grid) {
  const int tp = grid.size(Axis::tensor);
  const std::int64_t count = sequences / grid.size(Axis::data);
  const std::int64_t first = grid.rank(Axis::data) * count;
  const std::int64_t padded = nn::padded_sequence(seq, tp);
  const nn::SequenceSlice slice = nn::SequenceSlice::of(padded, seq, grid.rank(Axis::tensor), tp);
  const auto part = [&](const at::Tensor& all) {
    return at::constant_pad_nd(all, {0, 0, 0, padded - seq})
        .narrow(0, first, count)
        .narrow(1, slice.first, slice.count);
  };
  const nn::TokenBatch batch = make_batch(first, count, seq, padded);
  moe::MoeContext context = make_context(batch, sequences, seq);
  Outcome outcome;
  outcome.statistics = moe::make_statistics(run.options.num_experts);
  context.statistics = &outcome.statistics;
  context.balance_frequency_E = uneven_frequency(run.options);
  context.bias_E = run.bias_E;
  at::Tensor forced;
  if (run.forced_TK.defined()) {
    forced = run.forced_TK.view({sequences, seq, -1})
                 .narrow(0, first, count)
                 .narrow(1, std::min(slice.first, seq), slice.real_count)
                 .reshape({count * slice.real_count, run.options.top_k});
    context.forced_ids_TK = &forced;
  }
  const at::Tensor x = part(run.x_BSD).clone().requires_grad_();
  const moe::MoeOutput output = test.layer->forward(x, context);
  at::Tensor loss = (output.y_BsD * part(run.seed_BSD)).sum();
  if (output.aux.defined()) {
    loss = loss + 1.7 * output.aux;
    outcome.aux = output.aux.item<double>();
  }
  loss.backward();
  outcome.y_BSD = output.y_BsD.detach().narrow(1, 0, slice.real_count);
  outcome.dx_BSD = x.grad().narrow(1, 0, slice.real_count);
  return outcome;
}

at::Tensor slice_of(const at::Tensor& whole, const parallel::ShardSpec& shard) {
  at::Tensor part = whole;
  for (std::size_t dim = 0; dim < shard.offset.size(); ++dim) {
    part = part.narrow(static_cast<std::int64_t>(dim), shard.offset[dim], shard.local_shape[dim]);
  }
  return part;
}

void compare_gradients(const LayerUnderTest& one, const LayerUnderTest& test,
                       const parallel::ProcessGrid& grid) {
  for (const parallel::ReductionGroup& group :
       parallel::build_reduction_groups(test.parameters, grid.role())) {
    for (const auto& parameter : group.parameters) {
      at::Tensor sum = test.grad(parameter->name).clone();
      parallel::all_reduce_(sum, ReduceOp::sum, group.comm, Traffic::other);
      expect_close(sum, slice_of(one.grad(parameter->name), parameter->shard), 1e-9, parameter->name);
    }
  }
}

void compare_statistics(const Outcome& one, const Outcome& outcome, const parallel::Communicator& role) {
  at::Tensor counts = outcome.statistics.counts_E.clone();
  at::Tensor score_sums = outcome.statistics.score_sum_E.clone();
  parallel::all_reduce_(counts, ReduceOp::sum, role, Traffic::other);
  parallel::all_reduce_(score_sums, ReduceOp::sum, role, Traffic::other);
  EXPECT_TRUE(counts.equal(one.statistics.counts_E));
  expect_close(score_sums, one.statistics.score_sum_E, 1e-12, "score sums");
  const auto close = [&](double value, double expected, const char* what) {
    EXPECT_NEAR(parallel::all_reduce_sum(value, role), expected, 1e-11 * (1 + std::abs(expected))) << what;
  };
  close(outcome.aux, one.aux, "aux");
  close(outcome.statistics.z_sum, one.statistics.z_sum, "z");
  close(outcome.statistics.entropy_sum, one.statistics.entropy_sum, "entropy");
  close(outcome.statistics.sequence_sum, one.statistics.sequence_sum, "sequence");
  EXPECT_EQ(parallel::all_reduce_sum(outcome.statistics.dropped, role), one.statistics.dropped);
  EXPECT_EQ(parallel::all_reduce_sum(outcome.statistics.num_sequences, role), one.statistics.num_sequences);
}

/// Runs on one rank and on every legal layout of the world, and compares everything.
void expect_layout_invariant(const GlobalRun& run) {
  const parallel::ProcessGrid single;
  const LayerUnderTest one(run.options, hidden, single);
  const Outcome expected = run_part(run, one, single);
  const int ranks = world().size();
  for (int tp = 1; tp <= ranks; ++tp) {
    for (int ep = 1; ranks % tp == 0 && ep <= ranks; ++ep) {
      if (ranks % ep != 0 || run.options.num_experts % ep != 0) {
        continue;
      }
      SCOPED_TRACE("ranks " + std::to_string(ranks) + ", tp " + std::to_string(tp) + ", ep " +
                   std::to_string(ep));
      const parallel::ProcessGrid grid(parallel::ParallelDims::from_role_size(ranks, tp, ep), world());
      const LayerUnderTest test(run.options, hidden, grid);
      const Outcome outcome = run_part(run, test, grid);
      const std::int64_t count = sequences / grid.size(Axis::data);
      const nn::SequenceSlice slice =
          nn::SequenceSlice::of(nn::padded_sequence(seq, tp), seq, grid.rank(Axis::tensor), tp);
      const auto own = [&](const at::Tensor& all) {
        return all.narrow(0, grid.rank(Axis::data) * count, count)
            .narrow(1, std::min(slice.first, seq), slice.real_count);
      };
      expect_close(outcome.y_BSD, own(expected.y_BSD), 1e-10, "y");
      expect_close(outcome.dx_BSD, own(expected.dx_BSD), 1e-10, "dx");
      compare_statistics(expected, outcome, grid.role());
      compare_gradients(one, test, grid);
    }
  }
}

TEST(MoeLayerLayouts, AllBalanceKinds) {
  for (const BalanceCounts counts : {BalanceCounts::batch, BalanceCounts::micro_step}) {
    GlobalRun run;
    run.options.balance = {BalanceKind::squared, BalanceKind::switch_loss, BalanceKind::sequence};
    run.options.balance_counts = counts;
    expect_layout_invariant(run);
  }
}

TEST(MoeLayerLayouts, SigmoidBiasAndGroups) {
  GlobalRun run;
  run.bias_E = random_tensor({12}, 9) * 0.2;
  run.options.score = moe::RouterScore::sigmoid;
  run.options.balance = {BalanceKind::bias, BalanceKind::squared};
  run.options.groups = 3;
  run.options.group_top_k = 2;
  expect_layout_invariant(run);
}

TEST(MoeLayerLayouts, Capacity) {
  for (const DropPolicy drop : {DropPolicy::position, DropPolicy::score}) {
    GlobalRun run;
    run.options.capacity_factor = 0.8;
    run.options.drop = drop;
    run.options.normalize_top_k = false;
    expect_layout_invariant(run);
  }
}

TEST(MoeLayerLayouts, SharedExperts) {
  GlobalRun run;
  run.options.shared_experts = 2;
  expect_layout_invariant(run);
}

TEST(MoeLayerLayouts, ColdRanks) {
  // All tokens to experts 0, 1 and 2: with ep > 1 the last ranks compute nothing and get zero gradients.
  GlobalRun run;
  run.forced_TK = at::arange(3, at::kLong).expand({sequences * seq, 3}).contiguous();
  expect_layout_invariant(run);
}

TEST(MoeLayerLayouts, NineExpertsTopOne) {
  GlobalRun run;
  run.options.num_experts = 9;
  run.options.top_k = 1;
  run.options.normalize_top_k = false;
  expect_layout_invariant(run);
}

TEST(MoeLayerLayouts, RepeatBitForBit) {
  GlobalRun run;
  const parallel::ProcessGrid grid(parallel::ParallelDims::from_role_size(world().size(), 1, world().size()),
                                   world());
  const LayerUnderTest first(run.options, hidden, grid);
  const LayerUnderTest second(run.options, hidden, grid);
  const Outcome a = run_part(run, first, grid);
  const Outcome b = run_part(run, second, grid);
  EXPECT_TRUE(a.y_BSD.equal(b.y_BSD));
  EXPECT_TRUE(a.dx_BSD.equal(b.dx_BSD));
  for (const auto& parameter : first.parameters.all()) {
    EXPECT_TRUE(first.grad(parameter->name).equal(second.grad(parameter->name))) << parameter->name;
  }
}

TEST(MoeLayerLayouts, BytesOnTheWireAreThoseOfTheRemoteChoices) {
  GlobalRun run;
  const int ranks = world().size();
  run.forced_TK = (at::arange(sequences * seq * 3, at::kLong)).remainder(12).view({-1, 3}).contiguous();
  const parallel::ProcessGrid grid(parallel::ParallelDims::from_role_size(ranks, 1, ranks), world());
  const LayerUnderTest test(run.options, hidden, grid);
  world().traffic().reset();
  run_part(run, test, grid);
  // f64 rows of the choices whose expert another rank holds; counts are 12 / ranks int64 to each other rank.
  const std::int64_t tokens = sequences * seq / ranks;
  const at::Tensor owner =
      run.forced_TK.narrow(0, grid.rank(Axis::data) * tokens, tokens).div(12 / ranks, "floor");
  const std::int64_t rows = (owner != grid.rank(Axis::expert)).sum().item<std::int64_t>() * hidden * 8;
  EXPECT_EQ(world().traffic().bytes(Traffic::combine), 2 * rows);
  EXPECT_EQ(world().traffic().bytes(Traffic::dispatch), 2 * rows + (ranks - 1) * (12 / ranks) * 8);
}

}  // namespace
}  // namespace athanor::tests
