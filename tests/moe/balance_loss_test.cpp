// Reported values, the capacity rule, the bias rule and the options' checks, on numbers small enough to check
// by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "moe/balance_loss.hpp"
#include "moe/capacity.hpp"
#include "moe/expert_bias.hpp"
#include "moe/moe_options.hpp"

namespace athanor::tests {
namespace {

using moe::BalanceKind;
using moe::DropPolicy;
using moe::MoeOptions;

MoeOptions four_experts() {
  MoeOptions options;
  options.num_experts = 4;
  options.top_k = 2;
  options.balance_weight = 0.1;
  options.z_weight = 0.5;
  return options;
}

moe::LayerStatistics statistics_of(const std::vector<std::int64_t>& counts,
                                   const std::vector<double>& scores) {
  moe::LayerStatistics statistics = moe::make_statistics(static_cast<std::int64_t>(counts.size()));
  statistics.counts_E = at::tensor(counts, at::kLong);
  statistics.score_sum_E = at::tensor(scores, at::kDouble);
  return statistics;
}

TEST(BalanceValues, OfABalancedLayer) {
  const MoeOptions options = four_experts();
  const moe::BalanceValues values =
      moe::balance_values(statistics_of({4, 4, 4, 4}, {2, 2, 2, 2}), 8, options);
  EXPECT_DOUBLE_EQ(values.squared, 0.0);
  EXPECT_DOUBLE_EQ(values.switch_loss, 1.0);
  EXPECT_DOUBLE_EQ(values.use_std, 0.0);
  EXPECT_DOUBLE_EQ(values.use_max, 1.0);
  EXPECT_DOUBLE_EQ(values.use_min, 1.0);
}

TEST(BalanceValues, OfAnUnevenLayer) {
  MoeOptions options = four_experts();
  moe::LayerStatistics statistics = statistics_of({8, 4, 4, 0}, {5, 2, 1, 0});
  statistics.z_sum = 16.0;
  statistics.entropy_sum = 4.0;
  statistics.dropped = 4;
  statistics.sequence_sum = 3.0;
  statistics.num_sequences = 2;
  // mu = 1/2 and f = (1, 1/2, 1/2, 0): f/mu = (2, 1, 1, 0).
  const moe::BalanceValues values = moe::balance_values(statistics, 8, options);
  EXPECT_DOUBLE_EQ(values.squared, 0.5);
  EXPECT_DOUBLE_EQ(values.switch_loss, (2 * 5 + 2 + 1) / 8.0);
  EXPECT_DOUBLE_EQ(values.use_std, std::sqrt(0.5));
  EXPECT_DOUBLE_EQ(values.use_max, 2.0);
  EXPECT_DOUBLE_EQ(values.use_min, 0.0);
  EXPECT_DOUBLE_EQ(values.z, 2.0);
  EXPECT_DOUBLE_EQ(values.entropy, 0.5);
  EXPECT_DOUBLE_EQ(values.dropped_share, 0.25);
  EXPECT_DOUBLE_EQ(values.sequence, 1.5);
  options.balance = {BalanceKind::squared, BalanceKind::sequence, BalanceKind::bias};
  EXPECT_DOUBLE_EQ(values.balance(options), 2.0);
  EXPECT_DOUBLE_EQ(values.weighted(options), 0.1 * 2.0 + 0.5 * 2.0);
}

TEST(BalanceValues, OfNothing) {
  const moe::BalanceValues values =
      moe::balance_values(statistics_of({0, 0, 0, 0}, {0, 0, 0, 0}), 0, four_experts());
  EXPECT_EQ(values.use_max, 0.0);
  EXPECT_EQ(values.switch_loss, 0.0);
}

// d/dP of the value, with d f := d(k P): the constants are the derivative of what is reported.
TEST(BalanceConstants, AreTheDerivativesOfTheValues) {
  const MoeOptions options = four_experts();
  const std::vector<double> f = {1.0, 0.6, 0.3, 0.1};
  const double E = 4, k = 2, alpha = options.balance_weight, h = 1e-6;
  const auto squared = [&](std::vector<double> use) {
    double sum = 0;
    for (const double value : use) {
      sum += (value * E / k - 1) * (value * E / k - 1);
    }
    return alpha / E * sum;
  };
  const std::vector<double> constants = moe::squared_constants(f, options);
  const std::vector<double> switch_constants = moe::switch_constants(f, options);
  for (std::size_t i = 0; i < f.size(); ++i) {
    std::vector<double> above = f, below = f;
    above[i] += k * h;
    below[i] -= k * h;
    EXPECT_NEAR(constants[i], (squared(above) - squared(below)) / (2 * h), 1e-8);
    EXPECT_DOUBLE_EQ(switch_constants[i], alpha * E / k * f[i]);
  }
}

TEST(Capacity, PositionKeepsTheEarliest) {
  // One sequence of 4 tokens with 2 choices; at most 2 of an expert.
  const at::Tensor ids = at::tensor({0, 1, 0, 2, 1, 0, 0, 1}, at::kLong).view({1, 4, 2});
  const at::Tensor scores = at::tensor({0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6}, at::kDouble).view({1, 4, 2});
  const at::Tensor kept = moe::keep_within_capacity(ids, scores, 3, 2, DropPolicy::position);
  EXPECT_TRUE(kept.equal(at::tensor({1, 1, 1, 1, 1, 0, 0, 0}, at::kByte).to(at::kBool).view({1, 4, 2})));
}

TEST(Capacity, ScoreKeepsTheHighest) {
  const at::Tensor ids = at::tensor({0, 1, 0, 2, 1, 0, 0, 1}, at::kLong).view({1, 4, 2});
  const at::Tensor scores = at::tensor({0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6}, at::kDouble).view({1, 4, 2});
  const at::Tensor kept = moe::keep_within_capacity(ids, scores, 3, 2, DropPolicy::score);
  EXPECT_TRUE(kept.equal(at::tensor({0, 1, 0, 1, 0, 1, 1, 1}, at::kByte).to(at::kBool).view({1, 4, 2})));
}

TEST(Capacity, EqualScoresKeepTheEarlier) {
  const at::Tensor ids = at::zeros({1, 4, 1}, at::kLong);
  const at::Tensor kept = moe::keep_within_capacity(ids, at::ones({1, 4, 1}), 1, 3, DropPolicy::score);
  EXPECT_TRUE(kept.equal(at::tensor({1, 1, 1, 0}, at::kByte).to(at::kBool).view({1, 4, 1})));
}

TEST(Capacity, SequencesAreIndependentAndPaddingIsNoChoice) {
  const at::Tensor ids = at::tensor({-1, 0, 0, 0, -1, 0}, at::kLong).view({2, 3, 1});
  const at::Tensor kept = moe::keep_within_capacity(ids, at::ones({2, 3, 1}), 1, 1, DropPolicy::position);
  EXPECT_TRUE(kept.equal(at::tensor({0, 1, 0, 1, 0, 0}, at::kByte).to(at::kBool).view({2, 3, 1})));
}

TEST(Capacity, RoundsUp) {
  MoeOptions options = four_experts();
  EXPECT_EQ(moe::sequence_capacity(options, 10), 0);
  options.capacity_factor = 1.0;
  EXPECT_EQ(moe::sequence_capacity(options, 10), 5);
  options.capacity_factor = 1.25;
  EXPECT_EQ(moe::sequence_capacity(options, 10), 7);  // 6.25
  options.capacity_factor = 0.01;
  EXPECT_EQ(moe::sequence_capacity(options, 10), 1);
}

TEST(ExpertBias, MovesTowardsTheMeanByTheSign) {
  at::Tensor bias = at::tensor({0.5, 0.0, -0.25, 0.0}, at::kDouble);
  moe::update_bias(bias, at::tensor({8, 4, 4, 0}, at::kLong), 0.1);  // mean 4
  EXPECT_TRUE(at::allclose(bias, at::tensor({0.4, 0.0, -0.25, 0.1}, at::kDouble), 0, 1e-15));
}

TEST(ExpertBias, OneChoiceOffTheMeanMoves) {
  at::Tensor bias = at::zeros({3}, at::kFloat);
  moe::update_bias(bias, at::tensor({3, 3, 4}, at::kLong), 0.5);  // mean 10/3
  EXPECT_TRUE(bias.equal(at::tensor({0.5, 0.5, -0.5}, at::kFloat)));
}

template <typename Change>
std::string refusal(int ep, Change change) {
  MoeOptions options;
  change(options);
  try {
    moe::validate(options, ep);
  } catch (const base::ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(MoeOptions, AreRefusedByName) {
  EXPECT_EQ(refusal(2, [](MoeOptions&) {}), "");
  EXPECT_NE(refusal(3, [](MoeOptions&) {}).find("parallel.ep = 3"), std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.top_k = 129; }).find("moe.top_k = 129"), std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.top_k = 0; }).find("moe.top_k = 0"), std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.num_experts = 0; }).find("moe.experts = 0"), std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.ffn = 0; }).find("moe.ffn = 0"), std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.groups = 3; }).find("moe.groups = 3"), std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.group_top_k = 2; }).find("moe.group_top_k = 2"),
            std::string::npos);
  EXPECT_NE(refusal(1,
                    [](MoeOptions& o) {
                      o.groups = 64;
                      o.group_top_k = 1;
                    })
                .find("moe.top_k = 4 exceeds the 2 experts"),
            std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.capacity_factor = -1; }).find("moe.capacity_factor"),
            std::string::npos);
  EXPECT_NE(refusal(1, [](MoeOptions& o) { o.z_weight = std::nan(""); }).find("moe.z_weight"),
            std::string::npos);
}

}  // namespace
}  // namespace athanor::tests
