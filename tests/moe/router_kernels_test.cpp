// Choice and gates on rows small enough to check by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "moe/detail/router_kernels.hpp"

namespace athanor::tests {
namespace {

using moe::detail::ChoiceShape;

std::vector<std::int64_t> choose(const std::vector<double>& scores, const ChoiceShape& shape,
                                 const std::vector<double>& bias = {}) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(shape.choices), -7);
  moe::detail::choose_experts(scores.data(), bias.empty() ? nullptr : bias.data(), 1, shape, ids.data());
  return ids;
}

using Ids = std::vector<std::int64_t>;

TEST(ChooseExperts, BestFirst) {
  EXPECT_EQ(choose({0.1, 0.4, 0.2, 0.3}, {4, 3}), (Ids{1, 3, 2}));
}

TEST(ChooseExperts, LowerIdWinsATie) {
  EXPECT_EQ(choose({0.2, 0.3, 0.3, 0.2, 0.2}, {5, 3}), (Ids{1, 2, 0}));
  EXPECT_EQ(choose({0.0, 0.0, 0.0}, {3, 3}), (Ids{0, 1, 2}));
}

TEST(ChooseExperts, BiasDecidesAlone) {
  EXPECT_EQ(choose({0.9, 0.1, 0.2}, {3, 1}, {-1.0, 0.5, 0.0}), (Ids{1}));
}

TEST(ChooseExperts, GroupsAreScoredByTheirBestSum) {
  // Groups of 3. Top (4/2) = 2 sums: 1.0, 1.1, 0.9 -> groups 1 and 0; expert 6 (0.85) is out of reach.
  const std::vector<double> scores = {0.9, 0.1, 0.0, 0.55, 0.55, 0.1, 0.85, 0.05, 0.0};
  EXPECT_EQ(choose(scores, {9, 4, 3, 2}), (Ids{0, 3, 4, 1}));
  EXPECT_EQ(choose(scores, {9, 4, 3, 3}), (Ids{0, 6, 3, 4}));
  EXPECT_EQ(choose(scores, {9, 4, 3, 0}), (Ids{0, 6, 3, 4}));
}

TEST(ChooseExperts, EqualGroupsAndExpertsKeepTheOrderOfIds) {
  EXPECT_EQ(choose({0.1, 0.1, 0.5, 0.1, 0.5, 0.1}, {6, 3, 3, 2}), (Ids{2, 4, 3}));
  EXPECT_EQ(choose({0.1, 0.1, 0.1, 0.1, 0.1, 0.1}, {6, 2, 3, 1}), (Ids{0, 1}));
}

TEST(ChooseExperts, MoreGroupsThanChoicesCountTheBestExpert) {
  // k / group_choices = 0: at least one expert counts.
  EXPECT_EQ(choose({0.5, 0.0, 0.4, 0.3, 0.45, 0.0}, {6, 1, 3, 2}), (Ids{0}));
}

TEST(ChooseExperts, NanRowsStillNameExperts) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(choose({nan, nan, nan, nan}, {4, 3}), (Ids{0, 1, 2}));
  EXPECT_EQ(choose({nan, 0.1, nan, 0.2}, {4, 3}), (Ids{3, 1, 0}));
  EXPECT_EQ(choose({nan, nan, nan, nan}, {4, 2, 2, 1}), (Ids{0, 1}));
}

// More experts than a vector has lanes, with many ties, against a stable sort.
TEST(ChooseExperts, AgreesWithAStableSort) {
  for (const std::int64_t experts : {17, 64, 128, 131}) {
    for (std::uint64_t row = 0; row < 50; ++row) {
      std::mt19937_64 generator(row + 1);
      std::vector<double> scores(static_cast<std::size_t>(experts));
      for (double& score : scores) {
        score = static_cast<double>(generator() % 40);
      }
      Ids expected(static_cast<std::size_t>(experts));
      std::iota(expected.begin(), expected.end(), 0);
      std::stable_sort(expected.begin(), expected.end(), [&](std::int64_t a, std::int64_t b) {
        return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
      });
      for (const std::int64_t choices : {1, 4, 16}) {
        EXPECT_EQ(choose(scores, {experts, choices}), Ids(expected.begin(), expected.begin() + choices));
      }
    }
  }
}

TEST(NormalisedGates, HoldWhereScoresUnderflow) {
  // Scores e^-2000 and e^-2001 are 0 in any format; their ratio is not.
  const std::vector<float> y = {0.0F, -2000.0F, -2001.0F};
  const Ids ids = {1, 2};
  std::vector<float> gates(2);
  moe::detail::normalised_gates(y.data(), ids.data(), 1, 3, 2, gates.data());
  EXPECT_NEAR(gates[0], 1.0 / (1.0 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(gates[0] + gates[1], 1.0, 1e-6);
}

TEST(RouterSums, MatchTheirDefinitions) {
  constexpr std::int64_t experts = 37, tokens = 6;  // no multiple of a vector
  std::vector<double> y(experts * tokens), s(experts * tokens), sums(2 * experts, 0.0), lse(tokens);
  double entropy = 0, z = 0;
  std::vector<double> expected(2 * experts, 0.0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    double total = 0;
    for (std::int64_t i = 0; i < experts; ++i) {
      const auto at = static_cast<std::size_t>(t * experts + i);
      y[at] = std::sin(static_cast<double>(7 * at)) * 3.0;
      total += std::exp(y[at]);
    }
    z += std::log(total) * std::log(total);
    for (std::int64_t i = 0; i < experts; ++i) {
      const auto at = static_cast<std::size_t>(t * experts + i);
      s[at] = std::exp(y[at]) / total;
      entropy -= s[at] * std::log(s[at]);
      expected[static_cast<std::size_t>(t / 3 * experts + i)] += s[at];
    }
  }
  const auto result =
      moe::detail::router_sums(y.data(), s.data(), tokens, 3, experts, sums.data(), lse.data());
  EXPECT_NEAR(result.entropy, entropy, 1e-12 * entropy);
  EXPECT_NEAR(result.z, z, 1e-12 * z);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    EXPECT_NEAR(sums[i], expected[i], 1e-14);
  }
}

}  // namespace
}  // namespace athanor::tests
