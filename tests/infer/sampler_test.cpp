// The choice of the next token: processors on hand-checkable rows, their order, and the drawn distribution.
#include "infer/sampler.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.hpp"

namespace athanor::infer {
namespace {

constexpr double removed = -std::numeric_limits<double>::infinity();

SamplerOptions plain() {
  SamplerOptions options;
  options.top_k = 0;
  options.repetition_penalty = 1.0;
  return options;
}

// Shares of `draws` draws, one request each.
std::vector<double> shares(const SamplerOptions& options, const std::vector<double>& logits,
                           const std::vector<std::int64_t>& history, int draws) {
  const Sampler sampler(options);
  std::vector<double> counts(logits.size(), 0.0);
  for (int request = 0; request < draws; ++request) {
    const SampledToken out = sampler.sample(logits, history, static_cast<std::uint64_t>(request), 7);
    counts[static_cast<std::size_t>(out.token)] += 1.0 / draws;
  }
  return counts;
}

TEST(RepetitionPenalty, DividesPositiveAndMultipliesNegativeOncePerToken) {
  std::vector<double> logits = {2.4, -1.0, 3.0, 0.0};
  const std::vector<std::int64_t> history = {0, 1, 0, 0, 3};
  apply_repetition_penalty(logits, history, 1.2);
  EXPECT_DOUBLE_EQ(logits[0], 2.0);
  EXPECT_DOUBLE_EQ(logits[1], -1.2);
  EXPECT_DOUBLE_EQ(logits[2], 3.0);
  EXPECT_DOUBLE_EQ(logits[3], 0.0);
}

TEST(TopK, KeepsTheLargestAndTiesWithTheLastOfThem) {
  std::vector<double> logits = {1.0, 3.0, 2.0, 2.0, 0.0};
  keep_top_k(logits, 2);
  EXPECT_EQ(logits, (std::vector<double>{removed, 3.0, 2.0, 2.0, removed}));
}

TEST(TopK, ZeroAndMoreThanTheVocabularyKeepAll) {
  const std::vector<double> all = {1.0, 3.0, 2.0};
  for (std::int64_t k : {0, 3, 50}) {
    std::vector<double> logits = all;
    keep_top_k(logits, k);
    EXPECT_EQ(logits, all) << k;
  }
}

TEST(TopP, KeepsTokensUntilTheirSumReachesIt) {
  const std::vector<double> logits = {std::log(0.125), std::log(0.5), std::log(0.25), std::log(0.125)};
  const auto kept = [&](double p) {
    std::vector<double> copy = logits;
    keep_top_p(copy, p);
    std::vector<int> out;
    for (std::size_t i = 0; i < copy.size(); ++i) {
      if (copy[i] > removed) {
        out.push_back(static_cast<int>(i));
      }
    }
    return out;
  };
  EXPECT_EQ(kept(1e-9), (std::vector<int>{1}));
  EXPECT_EQ(kept(0.49), (std::vector<int>{1}));
  EXPECT_EQ(kept(0.51), (std::vector<int>{1, 2}));
  EXPECT_EQ(kept(0.76), (std::vector<int>{0, 1, 2}));  // of equal tokens the smaller id goes first
  EXPECT_EQ(kept(0.99), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(kept(1.0), (std::vector<int>{0, 1, 2, 3}));
}

TEST(Sampler, GreedyTakesTheArgmaxAfterThePenalty) {
  SamplerOptions options;
  options.temperature = 0.0;
  options.repetition_penalty = 1.2;
  const Sampler sampler(options);
  const std::vector<double> logits = {1.0, 1.1, 0.5};
  EXPECT_EQ(sampler.sample(logits, {}, 0, 0).token, 1);
  EXPECT_EQ(sampler.sample(logits, std::vector<std::int64_t>{1}, 0, 0).token, 0);
}

TEST(Sampler, LogProbabilityIsTheModelsOwn) {
  SamplerOptions options;
  options.temperature = 0.0;
  options.repetition_penalty = 3.0;
  const std::vector<double> logits = {std::log(0.25), std::log(0.5), std::log(0.25)};
  const SampledToken out = Sampler(options).sample(logits, std::vector<std::int64_t>{0, 2}, 0, 0);
  EXPECT_EQ(out.token, 1);
  EXPECT_NEAR(out.log_probability, std::log(0.5), 1e-15);
}

TEST(Sampler, DrawsFollowTheSoftmax) {
  const std::vector<double> probabilities = {0.5, 0.2, 0.0, 0.3};
  std::vector<double> logits;
  for (double p : probabilities) {
    logits.push_back(std::log(p) + 3.0);
  }
  const int draws = 40000;
  const std::vector<double> seen = shares(plain(), logits, {}, draws);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const double error = std::sqrt(probabilities[i] * (1.0 - probabilities[i]) / draws);
    EXPECT_NEAR(seen[i], probabilities[i], 4.0 * error) << i;
  }
}

TEST(Sampler, AppliesPenaltyThenTemperatureThenLimits) {
  SamplerOptions options = plain();
  options.repetition_penalty = 2.0;
  options.temperature = 0.5;
  options.top_k = 2;
  const std::vector<double> logits = {2.0, 0.75, 0.5};
  const std::vector<std::int64_t> history = {0};
  // 2/2, 0.75, 0.5 -> over 0.5: 2, 1.5, 1 -> the last one removed.
  const double first = 1.0 / (1.0 + std::exp(-0.5));
  const int draws = 20000;
  const std::vector<double> seen = shares(options, logits, history, draws);
  EXPECT_NEAR(seen[0], first, 4.0 * std::sqrt(first * (1.0 - first) / draws));
  EXPECT_EQ(seen[2], 0.0);
}

TEST(Sampler, TopPUsesTheTemperedDistribution) {
  SamplerOptions options = plain();
  options.temperature = 0.5;  // probabilities 0.6, 0.4 become 0.692, 0.308
  options.top_p = 0.65;
  const std::vector<double> seen = shares(options, {std::log(0.6), std::log(0.4)}, {}, 200);
  EXPECT_NEAR(seen[0], 1.0, 1e-9);
  EXPECT_EQ(seen[1], 0.0);
}

TEST(Sampler, DependsOnSeedRequestAndPositionOnly) {
  const std::vector<double> logits(1000, 0.0);
  SamplerOptions options = plain();
  const Sampler sampler(options);
  const std::int64_t token = sampler.sample(logits, {}, 3, 5).token;
  (void)sampler.sample(logits, {}, 4, 5);
  EXPECT_EQ(sampler.sample(logits, {}, 3, 5).token, token);
  EXPECT_EQ(Sampler(options).sample(logits, {}, 3, 5).token, token);
  EXPECT_NE(sampler.sample(logits, {}, 4, 5).token, token);
  EXPECT_NE(sampler.sample(logits, {}, 3, 6).token, token);
  options.seed = 1;
  EXPECT_NE(Sampler(options).sample(logits, {}, 3, 5).token, token);
}

TEST(Sampler, ReadsBothFloatTypesAndRefusesNan) {
  EXPECT_EQ(logits_row(at::tensor({1.5, -2.0}, at::kFloat)), (std::vector<double>{1.5, -2.0}));
  EXPECT_EQ(logits_row(at::tensor({1.5, -2.0}, at::kDouble)), (std::vector<double>{1.5, -2.0}));
  EXPECT_THROW(logits_row(at::tensor({1.5, std::nan("")}, at::kDouble)), base::NumericError);
}

TEST(GenerationOptions, RefusesValuesOutOfRangeNamingTheOption) {
  const auto refused = [](auto change) {
    GenerationOptions options;
    change(options);
    try {
      options.validate();
    } catch (const base::ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refused([](GenerationOptions&) {}), "");
  EXPECT_NE(refused([](auto& o) { o.sampler.temperature = -1; }).find("generate.temperature"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.sampler.top_k = -1; }).find("generate.top_k"), std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.sampler.top_p = 0; }).find("generate.top_p"), std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.sampler.top_p = 1.5; }).find("generate.top_p"), std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.sampler.repetition_penalty = 0; }).find("generate.repetition_penalty"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.min_new_tokens = 257; }).find("generate.min_new_tokens"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.max_new_tokens = 0; }).find("generate.max_new_tokens"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.beams = 0; }).find("generate.beams"), std::string::npos);
  EXPECT_NE(refused([](auto& o) {
              o.beams = 4;
              o.sampler.temperature = 0.7;
            }).find("generate.temperature"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) {
              o.beams = 4;
              o.sampler.top_p = 0.9;
            }).find("generate.top_p"),
            std::string::npos);
}

}  // namespace
}  // namespace athanor::infer
