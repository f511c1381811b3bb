#include "data/mixture.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "data/permutation.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using tests::message_of;

base::PhiloxStream stream(std::uint64_t seed) {
  return {seed, base::RandomPurpose::test, "permutation"};
}

TEST(KeyedPermutation, HitsEveryElementOnceForAnySize) {
  for (const std::int64_t size : {1, 2, 3, 15, 16, 17, 100, 255, 256, 257, 1000, 4097, 65537}) {
    const KeyedPermutation permutation(stream(1), 0, size);
    std::vector<bool> hit(static_cast<std::size_t>(size));
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t to = permutation(i);
      ASSERT_GE(to, 0);
      ASSERT_LT(to, size);
      ASSERT_FALSE(hit[static_cast<std::size_t>(to)]) << size;
      hit[static_cast<std::size_t>(to)] = true;
    }
  }
}

TEST(KeyedPermutation, DependsOnSeedAndEpoch) {
  const auto first = [](std::uint64_t seed, std::uint64_t epoch) {
    const KeyedPermutation permutation(stream(seed), epoch, 1000);
    std::vector<std::int64_t> values;
    for (std::int64_t i = 0; i < 20; ++i) {
      values.push_back(permutation(i));
    }
    return values;
  };
  EXPECT_EQ(first(1, 0), first(1, 0));
  EXPECT_NE(first(1, 0), first(1, 1));
  EXPECT_NE(first(1, 0), first(2, 0));
}

TEST(KeyedPermutation, HandlesHugeSizes) {
  const std::int64_t size = (std::int64_t{1} << 40) + 12345;
  const KeyedPermutation permutation(stream(3), 7, size);
  std::set<std::int64_t> seen;
  for (std::int64_t i = 0; i < 1000; ++i) {
    const std::int64_t to = permutation(size - 1 - i);
    EXPECT_TRUE(to >= 0 && to < size);
    EXPECT_TRUE(seen.insert(to).second);
  }
}

// Over many keys, each element of a small set is equally often in each place (chi-square, 25 degrees of
// freedom with sums fixed; 60 is far beyond the 99.99 % point, and the keys are fixed).
TEST(KeyedPermutation, SpreadsEvenlyOverKeys) {
  constexpr std::int64_t size = 6;
  constexpr int keys = 6000;
  std::vector<int> count(size * size);
  for (int key = 0; key < keys; ++key) {
    const KeyedPermutation permutation(stream(5), static_cast<std::uint64_t>(key), size);
    for (std::int64_t i = 0; i < size; ++i) {
      ++count[static_cast<std::size_t>(i * size + permutation(i))];
    }
  }
  const double expected = static_cast<double>(keys) / size;
  double chi_square = 0.0;
  for (const int n : count) {
    chi_square += (n - expected) * (n - expected) / expected;
  }
  EXPECT_LT(chi_square, 60.0);
}

TEST(LargestRemainder, SumsToTheTotalWithEarlierEntriesFirst) {
  EXPECT_EQ(largest_remainder({1, 1, 1}, 1024), (std::vector<std::int64_t>{342, 341, 341}));
  EXPECT_EQ(largest_remainder({0.7, 0.3}, 1024), (std::vector<std::int64_t>{717, 307}));
  EXPECT_EQ(largest_remainder({5}, 1024), (std::vector<std::int64_t>{1024}));
  EXPECT_EQ(largest_remainder({1, 2, 4}, 10), (std::vector<std::int64_t>{1, 3, 6}));
}

Mixture make_mixture(std::uint64_t seed = 11) {
  return Mixture({{"prose", 0.7, 500}, {"code", 0.25, 90}, {"rare", 0.05, 7}}, seed);
}

TEST(Mixture, GivesEachDomainItsExactShareOfEveryPeriod) {
  const Mixture mixture = make_mixture();
  EXPECT_EQ(mixture.positions_per_period(), (std::vector<std::int64_t>{717, 256, 51}));
  std::vector<std::vector<std::int64_t>> placements;
  for (const std::int64_t period : {0, 1, 9}) {
    std::vector<std::int64_t> count(3);
    std::vector<std::int64_t> placement;
    for (std::int64_t i = 0; i < Mixture::period; ++i) {
      const auto domain = mixture.sample_at(period * Mixture::period + i).domain;
      ++count[static_cast<std::size_t>(domain)];
      placement.push_back(domain);
    }
    EXPECT_EQ(count, mixture.positions_per_period());
    placements.push_back(placement);
  }
  EXPECT_NE(placements[0], placements[1]);
  EXPECT_NE(placements[1], placements[2]);
}

// The arithmetic must say what a replay from the start finds: domains are consumed element by element.
TEST(Mixture, CursorArithmeticEqualsReplay) {
  const Mixture mixture = make_mixture();
  std::vector<std::int64_t> consumed(3);
  for (std::int64_t position = 0; position < 3 * Mixture::period; ++position) {
    for (std::int64_t domain = 0; position % 97 == 0 && domain < 3; ++domain) {
      ASSERT_EQ(mixture.samples_before(domain, position), consumed[static_cast<std::size_t>(domain)]);
    }
    const MixtureSample found = mixture.sample_at(position);
    ASSERT_EQ(found.sample,
              mixture.ordered_sample(found.domain, consumed[static_cast<std::size_t>(found.domain)]++));
  }
}

TEST(Mixture, EveryEpochOfADomainIsAPermutation) {
  const Mixture mixture = make_mixture();
  std::vector<std::vector<std::int64_t>> epochs;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::int64_t> samples;
    for (std::int64_t i = 0; i < 90; ++i) {
      samples.push_back(mixture.ordered_sample(1, epoch * 90 + i));
    }
    epochs.push_back(samples);
    std::sort(samples.begin(), samples.end());
    std::vector<std::int64_t> all(90);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(samples, all);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST(Mixture, IsAFunctionOfSeedAndPositionAlone) {
  const Mixture first = make_mixture();
  const Mixture second = make_mixture();
  const Mixture other = make_mixture(12);
  int differences = 0;
  for (std::int64_t i = 0; i < 500; ++i) {
    const std::int64_t position = (i * 7919) % 100000;
    const MixtureSample a = first.sample_at(position);
    const MixtureSample b = second.sample_at(position);
    EXPECT_TRUE(a.domain == b.domain && a.sample == b.sample);
    const MixtureSample c = other.sample_at(position);
    differences += a.domain != c.domain || a.sample != c.sample;
  }
  EXPECT_GT(differences, 400);
}

TEST(Mixture, RefusesWeightsThatMeanNothing) {
  for (const double weight : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    EXPECT_CONTAINS(message_of<base::ConfigError>([&] {
                      Mixture({{"a", 1.0, 5}, {"b", weight, 5}}, 0);
                    }),
                    "domain b has weight");
  }
  EXPECT_CONTAINS(message_of<base::ConfigError>([&] {
                    Mixture({{"a", 1.0, 5}, {"b", 1e-4, 5}}, 0);
                  }),
                  "domain b would never be read");
}

}  // namespace
}  // namespace athanor::data
