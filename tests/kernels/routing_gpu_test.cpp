// The router's passes and the selection of logits on a GPU against the same bodies run on the host.
#include "kernels/bodies/topk.hpp"
#include "kernels/routing_cases.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::kernels {
namespace {

using bodies::run_rows;
using tests::DeviceArray;
using tests::expect_same;
using tests::expect_twin;
using tests::random_values;

template <typename A>
class RoutingGpu : public tests::GpuKernels {};
using Accumulation = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RoutingGpu, Accumulation);

TYPED_TEST(RoutingGpu, ChooseExperts) {
  using A = TypeParam;
  for (const std::int64_t tokens : {0, 1, 301}) {
    for (const ChoiceShape& shape : tests::choice_shapes()) {
      const auto scores = tests::example_scores<A>(tokens, shape.experts);
      const auto bias = random_values<A>(shape.experts, 23, 0.5);
      const auto device_scores = this->put(scores), device_bias = this->put(bias);
      std::vector<std::int64_t> ids(static_cast<std::size_t>(tokens * shape.choices));
      const DeviceArray<std::int64_t> device_ids(ids.size());
      for (const bool has_bias : {false, true}) {
        cuda::choose_experts<A>(device_scores.data(), has_bias ? device_bias.data() : nullptr, tokens, shape,
                                device_ids.data(), this->stream());
        run_rows(
            bodies::ChooseExpertsRow<A>{scores.data(), has_bias ? bias.data() : nullptr, shape, ids.data()},
            tokens);
        expect_same(this->get(device_ids), ids, "ids");
      }
    }
  }
}

TYPED_TEST(RoutingGpu, GatesSumsAndGradients) {
  using A = TypeParam;
  constexpr std::int64_t per_sequence = 37, experts = 70, choices = 4;
  for (const std::int64_t sequences : {0, 1, 5}) {
    const std::int64_t tokens = sequences * per_sequence;
    const tests::Normalised<A> of(tokens, experts);
    std::vector<std::int64_t> ids(static_cast<std::size_t>(tokens * choices));
    run_rows(
        bodies::ChooseExpertsRow<A>{
            of.y.data(), nullptr, {.experts = experts, .choices = choices}, ids.data()},
        tokens);
    std::vector<A> gates(ids.size()), lse(static_cast<std::size_t>(tokens));
    std::vector<double> entropy(lse.size()), scores(static_cast<std::size_t>(sequences * experts), 0.5);
    std::vector<RouterSums> sums(1);
    const auto dgates = random_values<A>(tokens * choices, 24), coefficients = random_values<A>(experts, 26);
    auto dy = random_values<A>(tokens * experts, 25);
    const auto device_y = this->put(of.y), device_s = this->put(of.s), device_gates = this->put(gates),
               device_lse = this->put(lse), device_dgates = this->put(dgates),
               device_coefficients = this->put(coefficients), device_dy = this->put(dy);
    const auto device_ids = this->put(ids);
    const auto device_entropy = this->put(entropy), device_scores = this->put(scores);
    const auto device_sums = this->put(sums);

    cuda::normalised_gates(device_y.data(), device_ids.data(), tokens, experts, choices, device_gates.data(),
                           this->stream());
    run_rows(bodies::NormalisedGatesRow<A>{of.y.data(), ids.data(), experts, choices, gates.data()}, tokens);
    // The library's exp is within 2 units on either side.
    tests::expect_near(this->get(device_gates), tests::widen(gates), 16 * tests::unit_roundoff<A>(), "gates");

    cuda::router_sums(device_y.data(), device_s.data(), tokens, per_sequence, experts, device_scores.data(),
                      device_lse.data(), device_entropy.data(), device_sums.data(), this->stream());
    run_rows(bodies::RouterStatisticsRow<A>{of.y.data(), of.s.data(), experts, lse.data(), entropy.data()},
             tokens);
    run_rows(bodies::RouterSumsOfTokens<A>{lse.data(), entropy.data(), tokens, sums.data()},
             tokens == 0 ? 0 : 1);
    bodies::run_column_step(bodies::ScoreSumColumn<A>{of.s.data(), experts, scores.data()},
                            {tokens, experts, per_sequence});
    tests::expect_near(this->get(device_lse), tests::widen(lse), 16 * tests::unit_roundoff<A>(), "lse");
    expect_same(this->get(device_scores), scores, "score sums");
    EXPECT_NEAR(this->get(device_sums)[0].entropy, sums[0].entropy, 1e-5 * sums[0].entropy);
    EXPECT_NEAR(this->get(device_sums)[0].z, sums[0].z, 1e-5 * sums[0].z);

    cuda::add_balance_gradient(device_s.data(), device_coefficients.data(), 1, tokens, per_sequence, experts,
                               A(0.3), device_dy.data(), this->stream());
    run_rows(bodies::BalanceGradientRow<A>{of.s.data(), coefficients.data(), 1, per_sequence, experts, A(0.3),
                                           dy.data()},
             tokens);
    expect_same(this->get(device_dy), dy, "dy of the balance loss");
    const auto same_gates = this->put(gates);
    for (const GateKind kind : {GateKind::normalised, GateKind::softmax, GateKind::sigmoid}) {
      cuda::add_gate_gradient(kind, same_gates.data(), device_dgates.data(), device_ids.data(),
                              device_s.data(), tokens, experts, choices, device_dy.data(), this->stream());
      run_rows(bodies::GateGradientRow<A>{kind, gates.data(), dgates.data(), ids.data(), of.s.data(), experts,
                                          choices, dy.data()},
               tokens);
      expect_same(this->get(device_dy), dy, "dy of the gates");
    }
  }
}

template <typename T>
class TopkGpu : public tests::GpuKernels {
 protected:
  using A = accumulation_t<T>;
  void expect_same_selection(const std::vector<T>& logits, std::int64_t rows, std::int64_t vocab,
                             std::int64_t top_k) {
    SCOPED_TRACE("top " + std::to_string(top_k) + " of " + std::to_string(vocab));
    std::vector<A> values(static_cast<std::size_t>(rows * top_k));
    std::vector<std::int32_t> ids(values.size());
    const auto device_logits = this->put(logits);
    const DeviceArray<A> device_values(values.size());
    const DeviceArray<std::int32_t> device_ids(ids.size());
    cuda::topk_logits(device_logits.data(), rows, vocab, 1000, top_k, device_values.data(), device_ids.data(),
                      this->stream());
    run_rows(bodies::TopkRow<T>{logits.data(), vocab, 1000, top_k, values.data(), ids.data()}, rows);
    expect_same(this->get(device_ids), ids, "ids");
    expect_same(this->get(device_values), values, "values");
  }
};
TYPED_TEST_SUITE(TopkGpu, tests::ElementTypes);

TYPED_TEST(TopkGpu, SelectsAsTheHost) {
  for (const std::int64_t rows : {0, 1, 5}) {
    for (const std::int64_t vocab : {0, 1, 257, 5000}) {
      for (const std::int64_t top_k : {1, 64, 300, 2048}) {
        this->expect_same_selection(random_values<TypeParam>(rows * vocab, 5, 3.0), rows, vocab, top_k);
      }
    }
  }
}

TYPED_TEST(TopkGpu, TiesNanAndPadding) {
  std::vector<TypeParam> logits(3 * 5000, static_cast<TypeParam>(1.5f));
  for (std::size_t i = 0; i < logits.size(); i += 3) {
    logits[i] = static_cast<TypeParam>(i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                                                  : -std::numeric_limits<float>::infinity());
  }
  this->expect_same_selection(logits, 3, 5000, 10);
  this->expect_same_selection(logits, 3, 5000, 2000);
}

TYPED_TEST(TopkGpu, RefusesMoreThanItHolds) {
  using A = accumulation_t<TypeParam>;
  const DeviceArray<TypeParam> logits(10);
  const DeviceArray<A> values(topk_capacity + 1);
  const DeviceArray<std::int32_t> ids(topk_capacity + 1);
  EXPECT_THROW(cuda::topk_logits(logits.data(), 1, 10, 0, topk_capacity + 1, values.data(), ids.data(),
                                 this->stream()),
               base::InternalError);
}

TYPED_TEST(RoutingGpu, MergeTopk) {
  using A = TypeParam;
  constexpr std::int64_t ranks = 4, rows = 7, top_k = 33;
  auto values = random_values<A>(ranks * rows * top_k, 6);
  std::vector<std::int32_t> ids(values.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i % 9 == 8 ? -1 : static_cast<std::int32_t>(i * 7919 % 100003);
    values[i] = std::round(values[i] * A(2));
  }
  std::vector<A> merged(rows * top_k);
  std::vector<std::int32_t> merged_ids(merged.size());
  const auto device_values = this->put(values);
  const auto device_ids = this->put(ids);
  const DeviceArray<A> device_merged(merged.size());
  const DeviceArray<std::int32_t> device_merged_ids(merged.size());
  cuda::merge_topk(device_values.data(), device_ids.data(), ranks, rows, top_k, device_merged.data(),
                   device_merged_ids.data(), this->stream());
  run_rows(bodies::MergeTopkRow<A>{values.data(), ids.data(), ranks, rows, top_k, merged.data(),
                                   merged_ids.data()},
           rows);
  expect_same(this->get(device_merged_ids), merged_ids, "ids");
  expect_same(this->get(device_merged), merged, "values");
}

}  // namespace
}  // namespace athanor::kernels
