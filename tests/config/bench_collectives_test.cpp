// `athanor bench collectives`, `bench dispatch` and the choice of algorithms as text.
#include "config/compare.hpp"
#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::expect_refused;
using tests::parse;

TEST(BenchCollectivesConfig, NeedsNoModel) {
  const RunConfig config =
      parse({"bench", "collectives", "--bench.max_bytes=4096", "--bench.rounds=2"}).config;
  EXPECT_EQ(config.command, Command::bench_collectives);
  EXPECT_FALSE(has_model(config.command));
  EXPECT_EQ(config.bench.max_bytes, 4096);
  validate(config, 4);
  expect_refused({"bench", "collectives", "--model.layers=2"}, {"model.layers", "does not use it"});
}

TEST(BenchCollectivesConfig, SizesAreInOrder) {
  expect_error(
      [] {
        validate(parse({"bench", "collectives", "--bench.min_bytes=4096", "--bench.max_bytes=64"}).config, 2);
      },
      base::ExitCode::usage, {"bench.max_bytes=64", "bench.min_bytes=4096"});
  expect_refused({"bench", "collectives", "--bench.min_bytes=1"}, {"bench.min_bytes", ">= 64"});
}

TEST(BenchDispatchConfig, TakesTheBenchShape) {
  const RunConfig config =
      parse({"bench", "dispatch", "--config=" + (tests::source_folder() / "configs" / "bench-s.ini").string(),
             "--bench.steps_per_round=1"})
          .config;
  EXPECT_TRUE(has_model(config.command));
  EXPECT_EQ(config.roles[0].model.moe.num_experts, 128);
  validate(config, 2);
}

TEST(CollectivesConfig, IsAListOfOperationAndAlgorithm) {
  const auto with = [](const std::string& value) {
    return parse({"train", "--model.vocab_size=64", "--data.train=x", "--parallel.collectives=" + value})
        .config;
  };
  validate(with("all_gather:ring,broadcast:binomial"), 1);
  validate(with("/tables/mine"), 1);  // a file, read when the job starts
  expect_error([&] { validate(with("all_gather:fast"), 1); }, base::ExitCode::usage,
               {"parallel.collectives=all_gather:fast", "'fast'", "at_once, pairwise, ring, collective"});
  expect_error([&] { validate(with("scatter:ring"), 1); }, base::ExitCode::usage,
               {"'scatter'", "exchange, all_gather, all_reduce, broadcast, barrier"});
}

TEST(CollectivesConfig, BelongsToTheRunAndNotToARole) {
  expect_refused({"distill", "--teacher.parallel.collectives=all_gather:ring"}, {"parallel.collectives"});
}

// The bits are the same: a run may go on with others.
TEST(CollectivesConfig, MayDifferFromTheCheckpoints) {
  const auto with = [](const std::string& value) {
    return parse({"train", "--model.vocab_size=64", "--data.train=x", "--parallel.collectives=" + value})
        .config;
  };
  EXPECT_TRUE(compare_with_stored(to_ini(with("")), with("all_gather:ring")).empty());
}

}  // namespace
}  // namespace athanor::config
