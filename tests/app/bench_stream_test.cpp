// `athanor bench stream` from outside.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using tests::Outcome;

class BenchStream : public testing::Test {
 protected:
  BenchStream() {
    std::string name = (fs::temp_directory_path() / "athanor_stream_XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~BenchStream() override { fs::remove_all(folder_); }

  // A small pair: an expert teacher on one rank, a dense student on the others.
  Outcome run(int ranks, const std::string& options) const {
    return tests::run_program(
        folder_,
        "bench stream --model.vocab_size=61 --model.layers=2 --model.hidden=16 --model.heads=2 "
        "--model.kv_heads=2 --moe.experts=4 --moe.top_k=2 --moe.ffn=8 --student.moe.experts=0 "
        "--student.moe.balance=none --model.ffn=24 --batch.global=4 --batch.seq=16 --distill.top_k=5 "
        "--distill.phases=joint --bench.rounds=2 --bench.steps_per_round=1 --bench.warmup_steps=1 " +
            options,
        tests::on_ranks(ranks));
  }

  fs::path folder_;
};

TEST_F(BenchStream, PrintsEveryFigureAsJson) {
  const Outcome outcome = run(2, "--teacher.ranks=1 --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = json::parse(outcome.out);
  EXPECT_EQ(result["tokens_per_step"], 64);
  EXPECT_EQ(result["rounds"].size(), 2u);
  for (const char* key : {"tokens_per_s", "teacher_tokens_per_s", "student_tokens_per_s", "ratio",
                          "ratio_to_sum", "student_wait_share", "teacher_wait_share"}) {
    const double median = result.at(key);
    EXPECT_GE(median, result.at(std::string(key) + "_min").get<double>()) << key;
    EXPECT_LE(median, result.at(std::string(key) + "_max").get<double>()) << key;
    EXPECT_TRUE(result["rounds"][0].contains(key)) << key;
  }
  EXPECT_GT(result["tokens_per_s"].get<double>(), 0.0);
  EXPECT_GT(result["roles"]["teacher"]["peak_rss_bytes"].get<double>(), 1e6);
  EXPECT_GT(result["roles"]["student"]["times_alone"]["total_s"].get<double>(), 0.0);
}

// The formula of config is that of the tensors, replicas and slices included.
TEST_F(BenchStream, TheBytesAreThoseOfTheFormulaForEverySignal) {
  for (const char* options :
       {"--distill.codec=full --student.parallel.tp=2", "--distill.codec=hidden --student.parallel.tp=2",
        "--distill.codec=hidden --distill.hidden_wire=fp8", "--distill.codec=topk",
        "--distill.codec=sampled --student.parallel.tp=2 --distill.attention_layers=1",
        "--distill.codec=full --precision.compute=bf16 --distill.hidden_wire=bf16",
        "--distill.codec=hidden --teacher.frozen=true --distill.hidden_layers=2"}) {
    SCOPED_TRACE(options);
    const Outcome outcome = run(3, std::string(options) + " --teacher.ranks=1 --json");
    ASSERT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
    const json bytes = json::parse(outcome.out)["link_bytes_per_step"];
    EXPECT_EQ(bytes["sent"], bytes["formula"]);
    EXPECT_EQ(bytes["received"], bytes["formula"]);
    EXPECT_TRUE(bytes["equal"].get<bool>());
  }
}

TEST_F(BenchStream, SeveralStudentsAreServedAtOnce) {
  const Outcome outcome = run(3,
                              "--distill.students=a,b --teacher.ranks=1 --student.a.ranks=1 "
                              "--student.b.ranks=1 --student.b.model.layers=1 --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = json::parse(outcome.out);
  EXPECT_TRUE(result["link_bytes_per_step"]["equal"].get<bool>());
  EXPECT_TRUE(result["roles"].contains("student.a"));
  EXPECT_TRUE(result["roles"].contains("student.b"));
}

TEST_F(BenchStream, SaysWhenRanksShareCores) {
  const Outcome outcome = run(4, "--student.ranks=2 --teacher.ranks=2");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("by the formula"));
  const bool are_shared = std::system("test $(nproc) -lt 4") == 0;
  EXPECT_EQ(outcome.out.find("ranks share") != std::string::npos, are_shared);
}

}  // namespace
}  // namespace athanor
