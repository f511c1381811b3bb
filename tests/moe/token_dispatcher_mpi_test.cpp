// Order and return of dispatched rows, with expert parallelism over the whole world.
#include <gtest/gtest.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>

#include "moe/token_dispatcher.hpp"
#include "support/finite_difference.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

constexpr std::int64_t experts_per_rank = 3;
constexpr std::int64_t width = 4;

/// Choices of `tokens` tokens that differ between ranks; every fifth choice is dropped when `drops`.
moe::Routing make_routing(std::int64_t tokens, std::int64_t choices, bool drops) {
  const std::int64_t experts = experts_per_rank * world().size();
  moe::Routing routing;
  const at::Tensor index = at::arange(tokens * choices, at::kLong);
  routing.topk_ids_TK =
      (index * 7 + world().rank() * 2).remainder(experts).view({tokens, choices}).contiguous();
  routing.gates_TK = random_tensor({tokens, choices}, static_cast<std::uint64_t>(world().rank()) + 1);
  if (drops) {
    routing.kept_TK = index.remainder(5).ne(0).view({tokens, choices}).contiguous();
    routing.gates_TK = routing.gates_TK * routing.kept_TK;
  }
  return routing;
}

/// Rows that name themselves: (rank, token, 0, ...).
at::Tensor named_rows(std::int64_t tokens) {
  at::Tensor x = at::zeros({tokens, width}, at::kDouble);
  x.select(1, 0).fill_(world().rank());
  x.select(1, 1).copy_(at::arange(tokens, at::kDouble));
  return x;
}

TEST(TokenDispatcher, OrdersRowsByExpertSourceAndPosition) {
  const moe::TokenDispatcher dispatcher(experts_per_rank * world().size(), world());
  const std::int64_t tokens = 10 + world().rank();
  const moe::Routing routing = make_routing(tokens, 2, true);
  const auto plan = dispatcher.plan(routing);
  const at::Tensor rows = dispatcher.dispatch(named_rows(tokens), plan);
  ASSERT_EQ(static_cast<std::int64_t>(plan->expert_rows.size()), experts_per_rank);
  ASSERT_EQ(rows.size(0), plan->buffer_rows());
  const auto cell = [&](std::int64_t row, std::int64_t column) { return rows[row][column].item<double>(); };
  std::int64_t row = 0;
  for (const std::int64_t count : plan->expert_rows) {
    for (std::int64_t i = 1; i < count; ++i) {
      EXPECT_LT(std::make_tuple(cell(row + i - 1, 0), cell(row + i - 1, 1)),
                std::make_tuple(cell(row + i, 0), cell(row + i, 1)));
    }
    row += count;
  }
  EXPECT_EQ(row, plan->num_expert_rows());
}

TEST(TokenDispatcher, CombineOfDispatchIsTheGatedSum) {
  for (const bool drops : {false, true}) {
    const moe::TokenDispatcher dispatcher(experts_per_rank * world().size(), world());
    const std::int64_t tokens = world().rank() == 0 ? 0 : 5;  // one rank sends nothing
    const moe::Routing routing = make_routing(tokens, 2, drops);
    const auto plan = dispatcher.plan(routing);
    const at::Tensor x = random_tensor({tokens, width}, 11).requires_grad_();
    const at::Tensor gates = routing.gates_TK.clone().requires_grad_();
    const at::Tensor y = dispatcher.combine(dispatcher.dispatch(x, plan), gates, plan);
    const at::Tensor seed = random_tensor({tokens, width}, 12);
    (y * seed).sum().backward();
    // Identity experts: y = x * sum of the kept gates.
    const at::Tensor kept =
        drops ? routing.kept_TK.to(at::kDouble) : at::ones(routing.topk_ids_TK.sizes(), at::kDouble);
    const at::Tensor sum = (routing.gates_TK * kept).sum(1, true);
    expect_close(y, x.detach() * sum, 1e-14, "y");
    expect_close(x.grad(), seed * sum, 1e-14, "dx");
    expect_close(gates.grad(), (x.detach() * seed).sum(1, true) * kept, 1e-13, "dgates");
  }
}

}  // namespace
}  // namespace athanor::tests
