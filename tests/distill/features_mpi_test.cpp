// Feature losses over a tensor-parallel group: heads split over ranks, positions split over ranks, against
// one rank.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "attention_fixture.hpp"
#include "distill/attention_loss.hpp"
#include "distill/hidden_loss.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::distill {
namespace {

using tests::AttentionCase;
using tests::expect_close;
using tests::random_tensor;

const parallel::Communicator alone;

at::Tensor heads_of(const at::Tensor& whole, const parallel::Communicator& tp) {
  const parallel::Block block = parallel::block_of(whole.size(2), tp.size(), tp.rank());
  return whole.narrow(2, block.first, block.count).clone();
}

QueriesKeys heads_of(const QueriesKeys& whole, const parallel::Communicator& tp) {
  return {heads_of(whole.q_BSHC, tp), heads_of(whole.k_BSGC, tp)};
}

/// EXPECTs that the ranks' gradients are their heads of the whole gradient.
void expect_heads(const at::Tensor& own, const at::Tensor& whole, const char* what) {
  expect_close(own, heads_of(whole, tests::world()), 1e-11, what);
}

TEST(SplitHeads, AttentionLossesAreThoseOfOneRank) {
  const parallel::Communicator& tp = tests::world();
  for (const AttentionLossKind kind : {AttentionLossKind::kl, AttentionLossKind::mse}) {
    for (const std::int64_t teacher_factor : {1, 2}) {
      AttentionCase one;
      one.kind = kind;
      one.student_heads = 2 * tp.size();
      one.student_groups = tp.size();
      one.teacher_heads = 2 * tp.size() * teacher_factor;
      one.teacher_groups = tp.size();
      const QueriesKeys whole = one.student(), teacher = one.teacher();
      const QueriesKeys own = heads_of(whole, tp);
      for (const QueriesKeys& layer : {whole, own}) {
        layer.q_BSHC.requires_grad_();
        layer.k_BSGC.requires_grad_();
      }
      const AttentionLoss expected =
          attention_map_loss(whole, teacher, one.weights(), one.documents(), alone, one.options(4));
      expected.objective.backward();
      const AttentionLoss actual =
          attention_map_loss(own, heads_of(teacher, tp), one.weights(), one.documents(), tp, one.options(3));
      actual.objective.backward();
      expect_close(actual.sum, expected.sum, 1e-12, "sum");
      expect_heads(own.q_BSHC.grad(), whole.q_BSHC.grad(), "dq");
      expect_heads(own.k_BSGC.grad(), whole.k_BSGC.grad(), "dk");
    }
  }
}

TEST(SplitPositions, HiddenStateLossesAddUpToThoseOfOneRank) {
  const parallel::Communicator& tp = tests::world();
  const std::int64_t part = 3, seq = part * tp.size();
  const at::Tensor s = random_tensor({2, seq, 5}, 1), t = random_tensor({2, seq, 4}, 2);
  const at::Tensor projection = random_tensor({4, 5}, 3), weight = random_tensor({2, seq}, 4).abs();
  const auto mine = [&](const at::Tensor& x) { return x.narrow(1, part * tp.rank(), part); };
  for (const HiddenLossKind kind :
       {HiddenLossKind::mse, HiddenLossKind::relative, HiddenLossKind::cosine, HiddenLossKind::normalized}) {
    const auto run = [&](const at::Tensor& states, const at::Tensor& targets, const at::Tensor& weights) {
      const at::Tensor h = states.clone().requires_grad_(), p = projection.clone().requires_grad_();
      const HiddenLoss loss = hidden_state_loss(h, targets, weights, {p}, {.kind = kind});
      loss.objective.backward();
      return std::vector<at::Tensor>{loss.objective.detach().clone().view({1}), p.grad(), h.grad()};
    };
    const auto expected = run(s, t, weight);
    auto actual = run(mine(s), mine(t), mine(weight));
    for (std::size_t i = 0; i < 2; ++i) {  // value and projection are sums over the ranks
      parallel::all_reduce_(actual[i], parallel::ReduceOp::sum, tp, parallel::Traffic::other);
      expect_close(actual[i], expected[i], 1e-12, i == 0 ? "value" : "dprojection");
    }
    expect_close(actual[2], mine(expected[2]), 1e-12, "dh");
  }
}

}  // namespace
}  // namespace athanor::distill
