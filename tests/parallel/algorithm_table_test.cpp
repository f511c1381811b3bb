// The table of algorithms as text and as rules.
#include "parallel/collectives/algorithm_table.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

void expect_refused(const std::function<void()>& action, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown; expected " << parts.at(0);
  } catch (const base::ConfigError& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

TEST(AlgorithmTable, EveryOperationGroupAndSizeHasAnAlgorithmThatCanDoIt) {
  const AlgorithmTable table;
  for (const Operation operation : all_operations()) {
    for (const int ranks : {2, 3, 4, 8, 1000}) {
      for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 16, any_bytes}) {
        const Algorithm chosen = table.choose(operation, ranks, bytes);
        bool is_legal = false;
        for (const Algorithm algorithm : algorithms_for(operation)) {
          is_legal = is_legal || algorithm == chosen;
        }
        EXPECT_TRUE(is_legal) << name_of(operation) << " " << name_of(chosen);
      }
    }
  }
}

TEST(AlgorithmTable, TheFirstRuleThatHoldsCounts) {
  const AlgorithmTable table({{Operation::all_gather, 4, 100, Algorithm::ring},
                              {Operation::all_gather, 4, any_bytes, Algorithm::pairwise},
                              {Operation::all_gather, any_ranks, any_bytes, Algorithm::at_once}});
  EXPECT_EQ(table.choose(Operation::all_gather, 2, 100), Algorithm::ring);
  EXPECT_EQ(table.choose(Operation::all_gather, 4, 101), Algorithm::pairwise);
  EXPECT_EQ(table.choose(Operation::all_gather, 5, 1), Algorithm::at_once);
  EXPECT_EQ(table.choose(Operation::barrier, 5, 0), AlgorithmTable().choose(Operation::barrier, 5, 0));
}

TEST(AlgorithmTable, AListIsForAllGroupsAndSizes) {
  const auto rules = parse_algorithm_list("all_gather:ring,barrier:dissemination");
  ASSERT_EQ(rules.size(), 2u);
  EXPECT_EQ(rules[0], (AlgorithmRule{Operation::all_gather, any_ranks, any_bytes, Algorithm::ring}));
  EXPECT_TRUE(parse_algorithm_list("").empty());
}

TEST(AlgorithmTable, RefusesWhatItDoesNotKnowAndNamesWhatItDoes) {
  expect_refused([] { parse_algorithm_list("all_scatter:ring"); },
                 {"parallel.collectives=all_scatter:ring", "exchange, all_gather, all_reduce, broadcast"});
  expect_refused([] { parse_algorithm_list("all_gather:binomial"); },
                 {"no algorithm 'binomial'", "at_once, pairwise, ring, collective"});
  expect_refused([] { parse_algorithm_list("barrier:collective,all_gather"); },
                 {"'all_gather' is no operation:algorithm"});
  expect_refused([] { parse_algorithm_list("exchange:at_once,exchange:pairwise"); },
                 {"exchange is there twice"});
  expect_refused(
      [] {
        AlgorithmTable({{Operation::barrier, 4, any_bytes, Algorithm::ring}});
      },
      {"barrier:ring", "dissemination, collective"});
}

TEST(AlgorithmTable, FilesReadBack) {
  const AlgorithmTable table({{Operation::all_gather, 4, 65536, Algorithm::ring}});
  const std::vector<AlgorithmRule>& rules = table.rules();
  EXPECT_EQ(parse_algorithm_file(to_algorithm_file(rules), "x"), rules);
  const auto read =
      parse_algorithm_file("\n# of another machine\nbroadcast 4 * binomial # small groups\n", "x");
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(read[0], (AlgorithmRule{Operation::broadcast, 4, any_bytes, Algorithm::binomial}));
}

TEST(AlgorithmTable, RefusesBrokenLinesWithTheirNumber) {
  expect_refused([] { parse_algorithm_file("broadcast * * binomial\nbroadcast * ring", "table.txt"); },
                 {"table.txt, line 2", "3 words"});
  expect_refused([] { parse_algorithm_file("broadcast 0 * binomial", "t"); }, {"'0' is no limit", "1 on"});
  expect_refused([] { parse_algorithm_file("broadcast * 4k binomial", "t"); }, {"'4k' is no limit"});
}

TEST(AlgorithmTable, FilesAndListsAreToldApart) {
  EXPECT_TRUE(is_algorithm_file("tables/mine.txt"));
  EXPECT_FALSE(is_algorithm_file("all_gather:ring"));
  EXPECT_FALSE(is_algorithm_file(""));
}

// Otherwise some ranks of one exchange would call MPI's all-to-all and others not.
TEST(AlgorithmTable, MpisAllToAllIsForAllSizesOrNone) {
  AlgorithmTable({{Operation::exchange, any_ranks, any_bytes, Algorithm::collective}});
  AlgorithmTable({{Operation::exchange, 2, 4096, Algorithm::pairwise},
                  {Operation::exchange, 2, any_bytes, Algorithm::at_once},
                  {Operation::exchange, 4, any_bytes, Algorithm::collective}});
  expect_refused(
      [] {
        AlgorithmTable({{Operation::exchange, any_ranks, 4096, Algorithm::collective}});
      },
      {"for some sizes only", "at_once"});
  expect_refused(
      [] {
        AlgorithmTable({{Operation::exchange, 4, 4096, Algorithm::pairwise},
                        {Operation::exchange, any_ranks, any_bytes, Algorithm::collective}});
      },
      {"for some sizes only"});
}

}  // namespace
}  // namespace athanor::parallel
