// `athanor bench collectives` and `bench dispatch` from outside. No test says how fast anything is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using tests::Outcome;

class BenchTools : public testing::Test {
 protected:
  BenchTools() {
    std::string name = (fs::temp_directory_path() / "athanor_bench_XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~BenchTools() override { fs::remove_all(folder_); }

  Outcome run(int ranks, const std::string& arguments) const {
    return tests::run_program(folder_, arguments, tests::on_ranks(ranks));
  }
  static std::string tiny() {
    return " --model.vocab_size=61 --model.hidden=16 --model.heads=2 --model.kv_heads=2 --moe.experts=4 "
           "--moe.top_k=2 --batch.global=4 --batch.seq=16 --bench.rounds=2 --bench.steps_per_round=1 "
           "--bench.warmup_steps=1 ";
  }

  fs::path folder_;
};

void expect_figures(const json& figures) {
  ASSERT_GT(figures.size(), 0u);
  for (const json& figure : figures) {
    EXPECT_FALSE(figure["name"].get<std::string>().empty());
    EXPECT_FALSE(figure["unit"].get<std::string>().empty());
    EXPECT_FALSE(figure["limit_name"].get<std::string>().empty());
    EXPECT_GT(figure["figure"].get<double>(), 0.0);
    EXPECT_GT(figure["limit"].get<double>(), 0.0);
    EXPECT_LE(figure["ratio_min"].get<double>(), figure["ratio"].get<double>());
    EXPECT_LE(figure["ratio"].get<double>(), figure["ratio_max"].get<double>());
  }
}

TEST_F(BenchTools, CollectivesPrintsCasesFiguresAndATableThatReadsBack) {
  const std::string table = (folder_ / "table.txt").string();
  const Outcome outcome = run(2,
                              "bench collectives --bench.min_bytes=256 --bench.max_bytes=4096 "
                              "--bench.rounds=2 --json --bench.table=" +
                                  table);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = outcome.json();
  EXPECT_EQ(result["ranks"], 2);
  EXPECT_EQ(result["cases"].size(), 19u);
  expect_figures(result["figures"]);
  for (const json& measured : result["cases"]) {
    EXPECT_TRUE(measured.contains("chosen"));
    EXPECT_TRUE(measured.contains("best"));
    EXPECT_GE(measured["algorithms"].size(), 2u);
  }
  EXPECT_EQ(tests::read_file(table), result["best_table"].get<std::string>());
  const Outcome again = run(2,
                            "bench collectives --bench.min_bytes=256 --bench.max_bytes=256 --bench.rounds=1 "
                            "--parallel.collectives=" +
                                table);
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("chosen"));
}

TEST_F(BenchTools, CollectivesRefusesWhatItCannotDo) {
  const Outcome alone = tests::run_program(folder_, "bench collectives");
  EXPECT_EQ(alone.exit_code, 64);
  EXPECT_THAT(alone.err, HasSubstr("one rank"));
  const Outcome missing = run(2, "bench collectives --parallel.collectives=/no/such/table");
  EXPECT_EQ(missing.exit_code, 66);
  EXPECT_THAT(missing.err, HasSubstr("parallel.collectives=/no/such/table cannot be read"));
  const Outcome nowhere = run(2, "bench collectives --bench.table=/no/such/folder/table");
  EXPECT_EQ(nowhere.exit_code, 73);
  EXPECT_THAT(nowhere.err, HasSubstr("bench.table="));
}

TEST_F(BenchTools, DispatchPrintsFiguresAndBytesByTheFormula) {
  const Outcome outcome = run(2, "bench dispatch --parallel.ep=2 --json" + tiny());
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = outcome.json();
  EXPECT_EQ(result["tokens_per_step"], 64);
  expect_figures(result["figures"]);
  EXPECT_EQ(result["cases"].size(), 6u);  // 2 routings, 3 wires
  for (const json& measured : result["cases"]) {
    EXPECT_TRUE(measured["equal"].get<bool>()) << measured;
  }
}

TEST_F(BenchTools, DispatchSaysWhetherTheBoundsOfFp8AreKept) {
  const Outcome text = run(2,
                           "bench dispatch --parallel.ep=2 --model.vocab_size=61 --model.hidden=256 "
                           "--moe.experts=4 --batch.global=4 --bench.rounds=1 --bench.steps_per_round=1");
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("(at most 0.27: kept)"));
  EXPECT_THAT(text.out, HasSubstr("(at most 0.4: kept)"));
}

TEST_F(BenchTools, DispatchNeedsExpertsOnOtherRanks) {
  const Outcome outcome = run(2, "bench dispatch" + tiny());
  EXPECT_EQ(outcome.exit_code, 64);
  EXPECT_THAT(outcome.err, HasSubstr("parallel.ep=1"));
}

}  // namespace
}  // namespace athanor
