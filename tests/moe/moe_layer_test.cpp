// The sparse layer on one rank against the written-out reference, in f64.
#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "base/error.hpp"
#include "moe_fixture.hpp"
#include "support/finite_difference.hpp"

namespace athanor::tests {
namespace {

using moe::BalanceCounts;
using moe::BalanceKind;
using moe::DropPolicy;
using moe::MoeOptions;
using moe::RouterScore;

constexpr std::int64_t hidden = 10;

struct Case {
  std::string name;
  MoeOptions options;
  std::int64_t sequences = 3;
  std::int64_t seq = 7;
  std::int64_t padded_seq = 7;
  bool with_bias = false;
  bool first_step = false;  ///< no f^ yet
};

MoeOptions base_options() {
  MoeOptions options;
  options.num_experts = 8;
  options.top_k = 3;
  options.ffn = 6;
  options.balance_weight = 0.5;
  return options;
}

template <typename Change>
Case make_case(const std::string& name, Change change) {
  Case result;
  result.name = name;
  result.options = base_options();
  change(result);
  return result;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const RouterScore score : {RouterScore::softmax, RouterScore::sigmoid}) {
    for (const bool normalize : {true, false}) {
      const std::string name = std::string(score == RouterScore::softmax ? "softmax" : "sigmoid") +
                               (normalize ? "_normalised" : "_raw");
      cases.push_back(make_case(name, [&](Case& c) {
        c.options.score = score;
        c.options.normalize_top_k = normalize;
        c.options.z_weight = 0.3;
        c.options.balance = {BalanceKind::squared, BalanceKind::switch_loss, BalanceKind::sequence};
      }));
    }
  }
  cases.push_back(make_case("no_terms", [](Case& c) { c.options.balance = {}; }));
  cases.push_back(make_case("first_step", [](Case& c) { c.first_step = true; }));
  cases.push_back(make_case("z_only", [](Case& c) {
    c.options.balance = {};
    c.options.z_weight = 0.2;
  }));
  cases.push_back(make_case("squared", [](Case& c) { c.options.balance = {BalanceKind::squared}; }));
  cases.push_back(make_case("switch", [](Case& c) { c.options.balance = {BalanceKind::switch_loss}; }));
  cases.push_back(make_case("sequence", [](Case& c) { c.options.balance = {BalanceKind::sequence}; }));
  cases.push_back(make_case("micro_step", [](Case& c) {
    c.options.balance = {BalanceKind::squared, BalanceKind::switch_loss};
    c.options.balance_counts = BalanceCounts::micro_step;
  }));
  cases.push_back(make_case("bias", [](Case& c) {
    c.options.balance = {BalanceKind::bias};
    c.with_bias = true;
  }));
  cases.push_back(make_case("groups", [](Case& c) {
    c.options.groups = 4;
    c.options.group_top_k = 2;
  }));
  cases.push_back(make_case("groups_bias_sigmoid", [](Case& c) {
    c.options.groups = 2;
    c.options.group_top_k = 1;
    c.options.score = RouterScore::sigmoid;
    c.with_bias = true;
  }));
  for (const DropPolicy drop : {DropPolicy::position, DropPolicy::score}) {
    for (const bool normalize : {true, false}) {
      const std::string name =
          std::string(drop == DropPolicy::score ? "drop_score" : "drop_position") + (normalize ? "" : "_raw");
      cases.push_back(make_case(name, [&](Case& c) {
        c.options.capacity_factor = 0.7;
        c.options.drop = drop;
        c.options.normalize_top_k = normalize;
        c.options.balance = {BalanceKind::sequence, BalanceKind::squared};
      }));
    }
  }
  cases.push_back(make_case("shared", [](Case& c) { c.options.shared_experts = 2; }));
  cases.push_back(make_case("padded", [](Case& c) {
    c.padded_seq = 9;
    c.options.balance = {BalanceKind::sequence};
  }));
  cases.push_back(make_case("top_1", [](Case& c) { c.options.top_k = 1; }));
  cases.push_back(make_case("all_experts", [](Case& c) { c.options.top_k = 8; }));
  cases.push_back(make_case("one_token", [](Case& c) {
    c.sequences = 1;
    c.seq = c.padded_seq = 1;
  }));
  return cases;
}

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

class MoeLayerCase : public ::testing::TestWithParam<Case> {};

TEST_P(MoeLayerCase, EqualsTheReference) {
  const Case& c = GetParam();
  const parallel::ProcessGrid grid;
  LayerUnderTest test(c.options, hidden, grid);
  const nn::TokenBatch batch = make_batch(20, c.sequences, c.seq, c.padded_seq);
  moe::MoeContext context = make_context(batch, c.sequences, c.seq);
  moe::LayerStatistics statistics = moe::make_statistics(c.options.num_experts);
  context.statistics = &statistics;
  context.balance_frequency_E = c.first_step ? at::Tensor() : uneven_frequency(c.options);
  context.bias_E = c.with_bias ? random_tensor({c.options.num_experts}, 5) * 0.2 : at::Tensor();

  const at::Tensor x_all = random_tensor({c.sequences, c.padded_seq, hidden}, 3);
  const at::Tensor x = x_all.clone().requires_grad_();
  const moe::MoeOutput output = test.layer->forward(x, context);
  const at::Tensor seed = random_tensor({c.sequences, c.seq, hidden}, 4);
  const double aux_seed = 1.7;
  at::Tensor loss = (output.y_BsD.narrow(1, 0, c.seq) * seed).sum();
  if (output.aux.defined()) {
    loss = loss + output.aux * aux_seed;
  }
  loss.backward();

  const ReferenceWeights weights = test.reference_weights();
  ReferenceInputs inputs;
  inputs.x_BSD = x_all.narrow(1, 0, c.seq).clone().requires_grad_();
  inputs.frequency_E = context.balance_frequency_E;
  inputs.bias_E = context.bias_E;
  inputs.valid_labels = context.valid_labels;
  const ReferenceResult expected = reference_moe(c.options, weights, inputs);
  at::Tensor expected_loss = (expected.y_BSD * seed).sum();
  ASSERT_EQ(output.aux.defined(), expected.aux.defined());
  if (expected.aux.defined()) {
    expected_loss = expected_loss + expected.aux * aux_seed;
    EXPECT_NEAR(output.aux.item<double>(), expected.aux.item<double>(),
                1e-10 * (1 + std::abs(expected.aux.item<double>())));
  }
  expected_loss.backward();

  expect_close(output.y_BsD.narrow(1, 0, c.seq), expected.y_BSD, 1e-11, "y");
  expect_close(x.grad().narrow(1, 0, c.seq), inputs.x_BSD.grad(), 1e-10, "dx");
  if (c.padded_seq > c.seq && c.options.shared_experts == 0) {
    EXPECT_EQ(x.grad().narrow(1, c.seq, c.padded_seq - c.seq).abs().max().item<double>(), 0.0);
    EXPECT_EQ(output.y_BsD.narrow(1, c.seq, c.padded_seq - c.seq).abs().max().item<double>(), 0.0);
  }
  expect_close(test.grad("moe.router.weight"), weights.router.grad(), 1e-10, "router");
  expect_close(test.grad("moe.experts.gate_up"), weights.gate_up.grad(), 1e-10, "gate_up");
  expect_close(test.grad("moe.experts.down"), weights.down.grad(), 1e-10, "down");
  if (c.options.shared_experts > 0) {
    expect_close(test.grad("moe.shared.gate_up.weight"), weights.shared_gate_up.grad(), 1e-10,
                 "shared gate_up");
    expect_close(test.grad("moe.shared.down.weight"), weights.shared_down.grad(), 1e-10, "shared down");
  }

  EXPECT_TRUE(statistics.counts_E.equal(expected.counts_E));
  EXPECT_EQ(statistics.dropped, expected.dropped);
  EXPECT_EQ(c.options.capacity_factor > 0, expected.dropped > 0);
  expect_close(statistics.score_sum_E, expected.score_sum_E, 1e-12, "score sums");
  EXPECT_NEAR(statistics.z_sum, expected.z_sum, 1e-10 * expected.z_sum);
  EXPECT_NEAR(statistics.entropy_sum, expected.entropy_sum, 1e-10 * std::abs(expected.entropy_sum) + 1e-12);
  EXPECT_NEAR(statistics.sequence_sum, expected.sequence_sum, 1e-10);
  EXPECT_EQ(statistics.num_sequences, c.options.uses(BalanceKind::sequence) ? c.sequences : 0);
}

INSTANTIATE_TEST_SUITE_P(All, MoeLayerCase, ::testing::ValuesIn(all_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(MoeLayer, GradientsMatchFiniteDifferences) {
  for (const bool sigmoid : {false, true}) {
    MoeOptions options = base_options();
    options.score = sigmoid ? RouterScore::sigmoid : RouterScore::softmax;
    options.balance = {BalanceKind::squared, BalanceKind::switch_loss, BalanceKind::sequence};
    options.z_weight = 0.3;
    options.capacity_factor = 0.8;
    const parallel::ProcessGrid grid;
    LayerUnderTest test(options, hidden, grid);
    const nn::TokenBatch batch = make_batch(0, 2, 5, 5);
    moe::MoeContext context = make_context(batch, 2, 5);
    context.balance_frequency_E = uneven_frequency(options);
    const at::Tensor x = random_tensor({2, 5, hidden}, 3).requires_grad_();
    const at::Tensor seed = random_tensor({2, 5, hidden}, 4);
    const auto loss = [&] {
      const moe::MoeOutput output = test.layer->forward(x, context);
      return (output.y_BsD * seed).sum() + output.aux;
    };
    loss().backward();
    std::vector<CheckedGradient> checked = {{x.detach(), x.grad(), "x"}};
    for (const auto& parameter : test.parameters.all()) {
      checked.push_back({parameter->value.detach(), parameter->grad.buffer(), parameter->name});
    }
    FiniteDifferenceOptions tolerance;
    tolerance.max_elements = 24;
    EXPECT_TRUE(gradients_match_values([&] { return loss().item<double>(); }, checked, tolerance));
  }
}

// Each kind's aux alone: its gradient reaches the router and x.
TEST(MoeLayer, AuxGradientsMatchFiniteDifferencesByKind) {
  for (const BalanceCounts counts : {BalanceCounts::batch, BalanceCounts::micro_step}) {
    for (const std::vector<BalanceKind>& kinds : {std::vector<BalanceKind>{BalanceKind::squared},
                                                  {BalanceKind::switch_loss},
                                                  {BalanceKind::sequence},
                                                  {}}) {
      MoeOptions options = base_options();
      options.balance = kinds;
      options.balance_counts = counts;
      options.z_weight = kinds.empty() ? 0.4 : 0.0;
      const parallel::ProcessGrid grid;
      LayerUnderTest test(options, hidden, grid);
      const nn::TokenBatch batch = make_batch(0, 2, 5, 5);
      moe::MoeContext context = make_context(batch, 4, 5);
      context.balance_frequency_E = uneven_frequency(options);
      const at::Tensor x = random_tensor({2, 5, hidden}, 3).requires_grad_();
      const auto aux = [&] { return test.layer->forward(x, context).aux; };
      aux().backward();
      ASSERT_GT(x.grad().abs().max().item<double>(), 0.0);
      const auto router = test.parameters.find("moe.router.weight");
      FiniteDifferenceOptions tolerance;
      tolerance.max_elements = 24;
      EXPECT_TRUE(gradients_match_values(
          [&] { return aux().item<double>(); },
          {{x.detach(), x.grad(), "x"}, {router->value.detach(), router->grad.buffer(), "router"}},
          tolerance));
    }
  }
}

TEST(MoeLayer, ColdExpertsGetZeroGradients) {
  MoeOptions options = base_options();
  options.top_k = 2;
  const parallel::ProcessGrid grid;
  LayerUnderTest test(options, hidden, grid);
  const nn::TokenBatch batch = make_batch(0, 2, 4, 4);
  moe::MoeContext context = make_context(batch, 2, 4);
  const at::Tensor ids = at::tensor({5, 2}, at::kLong).expand({8, 2}).contiguous();
  context.forced_ids_TK = &ids;
  const at::Tensor x = random_tensor({2, 4, hidden}, 3).requires_grad_();
  test.layer->forward(x, context).y_BsD.sum().backward();
  for (const std::string name : {"moe.experts.gate_up", "moe.experts.down"}) {
    const at::Tensor grad = test.grad(name);
    for (std::int64_t expert = 0; expert < 8; ++expert) {
      const double largest = grad[expert].abs().max().item<double>();
      EXPECT_EQ(largest > 0.0, expert == 5 || expert == 2)
          << name << " of expert " << expert << ": " << largest;
    }
  }
}

TEST(MoeLayer, GradientsAddUpOverMicroBatches) {
  const parallel::ProcessGrid grid;
  MoeOptions options = base_options();
  options.shared_experts = 1;
  LayerUnderTest whole(options, hidden, grid);
  LayerUnderTest split(options, hidden, grid);
  const at::Tensor frequency = uneven_frequency(options);
  const at::Tensor x = random_tensor({4, 5, hidden}, 3);
  const auto run = [&](const LayerUnderTest& test, std::int64_t first, std::int64_t count) {
    const nn::TokenBatch batch = make_batch(first, count, 5, 5);
    moe::MoeContext context = make_context(batch, 4, 5);
    context.balance_frequency_E = frequency;
    const moe::MoeOutput output =
        test.layer->forward(x.narrow(0, first, count).clone().requires_grad_(), context);
    (output.y_BsD.square().sum() + output.aux).backward();
  };
  run(whole, 0, 4);
  run(split, 0, 1);
  run(split, 1, 3);
  for (const auto& parameter : whole.parameters.all()) {
    expect_close(split.grad(parameter->name), whole.grad(parameter->name), 1e-11, parameter->name);
  }
}

TEST(MoeLayer, EmptySliceRuns) {
  const parallel::ProcessGrid grid;
  MoeOptions options = base_options();
  options.z_weight = 0.1;
  options.capacity_factor = 1.0;
  options.balance = {BalanceKind::squared, BalanceKind::sequence};
  LayerUnderTest test(options, hidden, grid);
  const nn::TokenBatch batch = make_batch(0, 0, 4, 4);
  moe::MoeContext context = make_context(batch, 2, 4);
  moe::LayerStatistics statistics = moe::make_statistics(options.num_experts);
  context.statistics = &statistics;
  context.balance_frequency_E = uneven_frequency(options);
  const at::Tensor x = at::zeros({0, 4, hidden}, at::kDouble).requires_grad_();
  const moe::MoeOutput output = test.layer->forward(x, context);
  (output.y_BsD.sum() + output.aux).backward();
  for (const auto& parameter : test.parameters.all()) {
    EXPECT_EQ(test.grad(parameter->name).abs().max().item<double>(), 0.0) << parameter->name;
  }
  EXPECT_EQ(statistics.counts_E.sum().item<std::int64_t>(), 0);
}

TEST(MoeLayer, ForcedUniformIsBalancedAndFollowsTheCanonicalOrder) {
  const parallel::ProcessGrid grid;
  MoeOptions options = base_options();
  options.force_uniform = true;
  LayerUnderTest test(options, hidden, grid);
  // 8 tokens x 3 choices over 8 experts: 3 each, wherever the sequences start.
  const nn::TokenBatch batch = make_batch(5, 2, 4, 4);
  moe::MoeContext context = make_context(batch, 2, 4);
  moe::LayerStatistics statistics = moe::make_statistics(options.num_experts);
  context.statistics = &statistics;
  test.layer->forward(random_tensor({2, 4, hidden}, 3), context);
  EXPECT_TRUE(statistics.counts_E.equal(at::full({8}, 3, at::kLong)));
}

TEST(MoeLayer, EvaluationHasNoAuxAndDoesNotCountTwice) {
  const parallel::ProcessGrid grid;
  MoeOptions options = base_options();
  options.z_weight = 0.1;
  LayerUnderTest test(options, hidden, grid);
  const nn::TokenBatch batch = make_batch(0, 2, 4, 4);
  moe::MoeContext context = make_context(batch, 2, 4);
  context.want_aux = false;
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({2, 4, hidden}, 3);
  const moe::MoeOutput output = test.layer->forward(x, context);
  EXPECT_FALSE(output.aux.defined());
  EXPECT_FALSE(output.y_BsD.requires_grad());
}

}  // namespace
}  // namespace athanor::tests
