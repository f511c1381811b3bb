// The bodies of the CUDA twins of the router's passes, run by the host's teams, against the CPU's.
#include "kernels/routing_cases.hpp"
#include "moe/detail/router_kernels.hpp"

namespace athanor::moe::detail {
namespace {

namespace bodies = kernels::bodies;
using bodies::run_rows;
using tests::expect_near;
using tests::expect_same;
using tests::random_values;
using tests::unit_roundoff;
using tests::widen;

template <typename A>
class RouterBodies : public ::testing::Test {};
using Accumulation = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RouterBodies, Accumulation);

TYPED_TEST(RouterBodies, ChooseTheSameExperts) {
  using A = TypeParam;
  constexpr std::int64_t tokens = 50;
  for (const ChoiceShape& shape : tests::choice_shapes()) {
    const auto scores = tests::example_scores<A>(tokens, shape.experts);
    const auto bias = random_values<A>(shape.experts, 23, 0.5);
    for (const A* b : {static_cast<const A*>(nullptr), bias.data()}) {
      std::vector<std::int64_t> ids(static_cast<std::size_t>(tokens * shape.choices)), expected = ids;
      run_rows(bodies::ChooseExpertsRow<A>{scores.data(), b, shape, ids.data()}, tokens);
      choose_experts(scores.data(), b, tokens, shape, expected.data());
      expect_same(ids, expected, "ids");
    }
  }
}

TYPED_TEST(RouterBodies, GatesAndTheirGradient) {
  using A = TypeParam;
  constexpr std::int64_t tokens = 20, experts = 40, choices = 4;
  const tests::Normalised<A> of(tokens, experts);
  std::vector<std::int64_t> ids(tokens * choices);
  choose_experts<A>(of.y.data(), nullptr, tokens, {.experts = experts, .choices = choices}, ids.data());
  std::vector<A> gates(tokens * choices), expected_gates(gates);
  run_rows(bodies::NormalisedGatesRow<A>{of.y.data(), ids.data(), experts, choices, gates.data()}, tokens);
  normalised_gates(of.y.data(), ids.data(), tokens, experts, choices, expected_gates.data());
  expect_near(gates, widen(expected_gates), 4 * unit_roundoff<A>(), "gates");
  const auto dgates = random_values<A>(tokens * choices, 24);
  for (const GateKind kind : {GateKind::normalised, GateKind::softmax, GateKind::sigmoid}) {
    auto dy = random_values<A>(tokens * experts, 25), expected = dy;
    run_rows(bodies::GateGradientRow<A>{kind, gates.data(), dgates.data(), ids.data(), of.s.data(), experts,
                                        choices, dy.data()},
             tokens);
    add_gate_gradient(kind, gates.data(), dgates.data(), ids.data(), of.s.data(), tokens, experts, choices,
                      expected.data());
    expect_near(dy, widen(expected), 4 * unit_roundoff<A>(), "dy");
  }
}

TYPED_TEST(RouterBodies, SumsAndBalanceGradient) {
  using A = TypeParam;
  constexpr std::int64_t sequences = 3, per_sequence = 37, tokens = sequences * per_sequence, experts = 50;
  const tests::Normalised<A> of(tokens, experts);
  std::vector<A> lse(tokens), expected_lse(tokens);
  std::vector<double> entropy(tokens), scores(sequences * experts, 0.5), expected_scores = scores;
  RouterSums sums{1.0, 2.0};
  run_rows(bodies::RouterStatisticsRow<A>{of.y.data(), of.s.data(), experts, lse.data(), entropy.data()},
           tokens);
  run_rows(bodies::RouterSumsOfTokens<A>{lse.data(), entropy.data(), tokens, &sums}, 1);
  bodies::run_column_step(bodies::ScoreSumColumn<A>{of.s.data(), experts, scores.data()},
                          {tokens, experts, per_sequence});
  const RouterSums expected = router_sums(of.y.data(), of.s.data(), tokens, per_sequence, experts,
                                          expected_scores.data(), expected_lse.data());
  expect_same(lse, expected_lse, "lse");
  expect_near(scores, expected_scores, 1e-14, "score sums");
  EXPECT_NEAR(sums.entropy - 1.0, expected.entropy, 16 * unit_roundoff<A>() * expected.entropy);
  EXPECT_NEAR(sums.z - 2.0, expected.z, 1e-12 * expected.z);

  for (const std::int64_t coefficient_rows : {std::int64_t{1}, sequences}) {
    const auto coefficients = random_values<A>(coefficient_rows * experts, 26);
    auto dy = random_values<A>(tokens * experts, 27), expected_dy = dy;
    run_rows(bodies::BalanceGradientRow<A>{of.s.data(), coefficients.data(), coefficient_rows, per_sequence,
                                           experts, A(0.3), dy.data()},
             tokens);
    add_balance_gradient(of.s.data(), coefficients.data(), coefficient_rows, tokens, per_sequence, experts,
                         A(0.3), expected_dy.data());
    expect_near(dy, widen(expected_dy), 8 * unit_roundoff<A>(), "dy");
  }
}

}  // namespace
}  // namespace athanor::moe::detail
