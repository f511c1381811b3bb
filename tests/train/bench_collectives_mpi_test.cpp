#include "train/bench_collectives.hpp"

#include <gtest/gtest.h>

#include <map>

#include "support/mpi_test.hpp"

namespace athanor::train {
namespace {

using parallel::Algorithm;
using parallel::AlgorithmRule;
using parallel::any_bytes;
using parallel::Operation;
using tests::world;

TEST(BenchCollectives, MeasuresEveryAlgorithmOfEveryOperation) {
  const auto rules = parallel::algorithms_of(world()).rules();
  const auto cases = bench_collectives({256, 4096, 2}, world());
  if (world().size() == 1) {
    EXPECT_TRUE(cases.empty());
    return;
  }
  EXPECT_EQ(parallel::algorithms_of(world()).rules(), rules) << "the table is as before";
  std::map<Operation, int> sizes;
  for (const CollectiveCase& measured : cases) {
    SCOPED_TRACE(measured.name);
    ++sizes[measured.operation];
    EXPECT_GT(measured.moved_bytes, 0);
    EXPECT_GT(measured.copy_s.median, 0.0);
    std::size_t eligible = 0;
    for (const AlgorithmTime& time : measured.algorithms) {
      eligible += time.algorithm ? 1 : 0;
      EXPECT_GT(time.seconds.min, 0.0) << time.name;
      EXPECT_LE(time.seconds.min, time.seconds.median);
      EXPECT_LE(time.seconds.median, time.seconds.max);
    }
    EXPECT_EQ(eligible, parallel::algorithms_for(measured.operation).size());
    EXPECT_TRUE(measured.algorithms[measured.chosen()].is_chosen);
    EXPECT_TRUE(measured.algorithms[measured.best()].algorithm.has_value()) << "MPI's sum is never chosen";
  }
  EXPECT_EQ(sizes[Operation::exchange], 9);  // counts, rows and sums at 256, 1024 and 4096
  EXPECT_EQ(sizes[Operation::all_gather], 3);
  EXPECT_EQ(sizes[Operation::barrier], 1);
}

CollectiveCase case_of(Operation operation, std::int64_t bytes, std::map<Algorithm, double> seconds,
                       Algorithm chosen) {
  CollectiveCase result{"x", operation, bytes, bytes, {}, {}};
  for (const auto& [algorithm, median] : seconds) {
    result.algorithms.push_back(
        {std::string(name_of(algorithm)), algorithm, algorithm == chosen, {median, median, median}, {}});
  }
  return result;
}

TEST(BenchCollectives, RulesChooseTheBestOfEachSize) {
  const auto all_gather = [](std::int64_t bytes, double ring, double collective) {
    return case_of(Operation::all_gather, bytes,
                   {{Algorithm::ring, ring}, {Algorithm::collective, collective}}, Algorithm::collective);
  };
  const auto rules = best_rules(
      {all_gather(1024, 2, 1), all_gather(4096, 1, 1.02), all_gather(16384, 1, 2), all_gather(65536, 1, 2)},
      4);
  const std::vector<AlgorithmRule> expected = {{Operation::all_gather, 4, 8192, Algorithm::collective},
                                               {Operation::all_gather, 4, any_bytes, Algorithm::ring}};
  EXPECT_EQ(rules, expected) << "2 % are no reason";
}

// Ranks of one exchange have different sizes and would disagree.
TEST(BenchCollectives, RulesNeverChooseMpisAllToAllForSomeSizes) {
  const auto rules =
      best_rules({case_of(Operation::exchange, 1024,
                          {{Algorithm::at_once, 3}, {Algorithm::pairwise, 2}, {Algorithm::collective, 1}},
                          Algorithm::at_once)},
                 2);
  ASSERT_EQ(rules.size(), 1u);
  EXPECT_EQ(rules[0].algorithm, Algorithm::pairwise);
  parallel::AlgorithmTable table(rules);
}

}  // namespace
}  // namespace athanor::train
