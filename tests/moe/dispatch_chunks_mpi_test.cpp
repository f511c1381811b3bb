// Rows exchanged in several chunks: the same bits and bytes as in one, cold ranks included.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "moe/token_dispatcher.hpp"
#include "moe_fixture.hpp"
#include "parallel/process_grid.hpp"
#include "support/finite_difference.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

using base::WireType;
using moe::RowWire;
using parallel::Traffic;

constexpr std::int64_t experts_per_rank = 5;  // 3 chunks: 2, 2 and 1; 4 chunks: the last has none
constexpr std::int64_t hidden = 8;
constexpr std::int64_t seq = 6;

/// What one forward and backward pass leaves.
struct Outcome {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  std::int64_t dispatch_bytes = 0;
  std::int64_t combine_bytes = 0;
};

struct Case {
  RowWire wire;
  at::ScalarType type = at::kFloat;
  bool all_to_one_rank = false;
  bool input_needs_gradient = true;
};

/// A layer over all ranks, each with another number of sequences and rank 0 with none.
Outcome run_layer(std::int64_t chunks, const Case& which) {
  const int ranks = world().size();
  moe::MoeOptions options;
  options.num_experts = experts_per_rank * ranks;
  options.top_k = 3;
  options.ffn = 4;
  options.shared_experts = 1;
  options.wire = which.wire;
  options.dispatch_chunks = chunks;
  const parallel::ProcessGrid grid(parallel::ParallelDims::from_role_size(ranks, 1, ranks), world());
  const LayerUnderTest test(options, hidden, grid, which.type);
  const std::int64_t count = ranks == 1 ? 2 : world().rank();
  const nn::TokenBatch batch = make_batch(world().rank() * 10, count, seq, seq);
  moe::MoeContext context = make_context(batch, 12, seq);
  const at::Tensor forced = (at::arange(count * seq * 3, at::kLong).remainder(3)).view({count * seq, 3});
  if (which.all_to_one_rank) {
    context.forced_ids_TK = &forced;
  }
  const at::Tensor x = random_tensor({count, seq, hidden}, 5 + static_cast<std::uint64_t>(world().rank()))
                           .to(which.type)
                           .requires_grad_(which.input_needs_gradient);
  const at::Tensor seed = random_tensor({count, seq, hidden}, 6).to(which.type);
  world().traffic().reset();
  const at::Tensor y = test.layer->forward(x, context).y_BsD;
  (y * seed).sum().backward();
  Outcome outcome;
  outcome.tensors.emplace_back("y", y.detach());
  if (which.input_needs_gradient) {
    outcome.tensors.emplace_back("dx", x.grad());
  }
  for (const char* name : {"moe.router.weight", "moe.experts.gate_up", "moe.experts.down"}) {
    outcome.tensors.emplace_back(name, test.grad(name).clone());
  }
  outcome.dispatch_bytes = world().traffic().bytes(Traffic::dispatch);
  outcome.combine_bytes = world().traffic().bytes(Traffic::combine);
  return outcome;
}

void expect_no_difference(const Case& which) {
  const Outcome one = run_layer(1, which);
  for (const std::int64_t chunks : {2, 3, 4, 5}) {
    const Outcome several = run_layer(chunks, which);
    for (std::size_t i = 0; i < one.tensors.size(); ++i) {
      EXPECT_TRUE(several.tensors[i].second.equal(one.tensors[i].second))
          << one.tensors[i].first << " in " << chunks << " chunks";
    }
    EXPECT_EQ(several.dispatch_bytes, one.dispatch_bytes);
    EXPECT_EQ(several.combine_bytes, one.combine_bytes);
  }
}

TEST(DispatchChunks, NoBitDependsOnTheirNumber) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    expect_no_difference({.wire = {}, .type = type});
  }
}

TEST(DispatchChunks, NorOnRoundedWires) {
  expect_no_difference({.wire = {WireType::bf16, WireType::bf16}});
  expect_no_difference({.wire = {WireType::fp8, WireType::bf16}});
  expect_no_difference({.wire = {WireType::fp8, WireType::full}});
}

TEST(DispatchChunks, NorWhereOneRankGetsEverything) {
  expect_no_difference({.wire = {}, .all_to_one_rank = true});
}

TEST(DispatchChunks, NorWhereTheInputNeedsNoGradient) {
  expect_no_difference({.wire = {}, .input_needs_gradient = false});
}

TEST(DispatchChunks, CombineFinishesWhatNobodyAwaited) {
  for (const std::int64_t chunks : {1, 2, 5}) {
    const moe::TokenDispatcher dispatcher(experts_per_rank * world().size(), world(), {}, {}, chunks);
    const std::int64_t tokens = world().rank() == 0 ? 0 : 7;
    moe::Routing routing;
    routing.topk_ids_TK = (at::arange(tokens * 2, at::kLong) * 7 + world().rank())
                              .remainder(experts_per_rank * world().size())
                              .view({tokens, 2})
                              .contiguous();
    routing.gates_TK = random_tensor({tokens, 2}, 3);
    const auto plan = dispatcher.plan(routing);
    ASSERT_EQ(static_cast<std::int64_t>(plan->chunks.size()), chunks);
    const at::Tensor x = random_tensor({tokens, hidden}, 11).requires_grad_();
    const at::Tensor y = dispatcher.combine(dispatcher.dispatch(x, plan), routing.gates_TK, plan);
    const at::Tensor seed = random_tensor({tokens, hidden}, 12);
    (y * seed).sum().backward();
    const at::Tensor sum = routing.gates_TK.sum(1, true);
    expect_close(y, x.detach() * sum, 1e-14, "y");
    expect_close(x.grad(), seed * sum, 1e-14, "dx");
  }
}

TEST(DispatchChunks, MoreThanExpertsAreRefused) {
  moe::MoeOptions options;
  options.num_experts = 8;
  options.dispatch_chunks = 3;
  EXPECT_NO_THROW(moe::validate(options, 2));
  EXPECT_THROW(moe::validate(options, 4), base::ConfigError);
}

}  // namespace
}  // namespace athanor::tests
