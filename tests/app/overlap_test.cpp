// Overlap of communication in whole jobs: teacher and student have the same curves with and without it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using tests::Outcome;

class OverlapProgram : public testing::Test {
 protected:
  OverlapProgram() {
    std::string name = (fs::temp_directory_path() / "athanor-overlap-XXXXXX").string();
    work_ = ::mkdtemp(name.data());
    std::ofstream text(work_ / "text.txt");
    for (int i = 0; i < 2000; ++i) {
      text << fmt::format("{} {} and then {}.\n{}", i % 7, i % 7 * 3,
                          i % 5 == 0 ? "again the same" : "something new", i % 10 == 9 ? "\n" : "");
    }
    text.close();
    const Outcome made = tests::run_program(
        work_, fmt::format("tokenize --input={0}/text.txt --output={0}/data --tokenizer={0}/tokenizer.model "
                           "--tokenize.vocab_size=300 --tokenize.held_out=0.1",
                           work_.string()));
    EXPECT_EQ(made.exit_code, 0) << made.err;
  }
  ~OverlapProgram() override { fs::remove_all(work_); }

  // A teacher and a student on two ranks each. The payload `hidden` ships the teacher's head when it changed;
  // an evaluation and a checkpoint come right after a step.
  Outcome distill(const std::string& name, const std::string& options, int steps = 8) const {
    return tests::run_program(
        work_,
        fmt::format(
            "distill --json --run.dir={0}/{1} --data.train={0}/data-train --data.valid={0}/data-valid "
            "--data.tokenizer={0}/tokenizer.model --teacher.ranks=2 --student.ranks=2 "
            "--teacher.parallel.ep=2 --model.layers=2 --model.hidden=32 --model.heads=4 "
            "--model.kv_heads=2 --model.max_seq=32 --moe.experts=8 --moe.top_k=2 --moe.ffn=16 "
            "--student.moe.experts=0 --student.moe.balance=none --model.ffn=32 --batch.global=8 "
            "--batch.seq=32 --batch.micro=2 --distill.codec=hidden --optim.warmup_steps=0 "
            "--train.steps={3} --train.log_every=1 --train.eval_every=3 --checkpoint.every=4 {2}",
            work_.string(), name, options, steps),
        tests::on_ranks(4));
  }

  // The figures of all steps of one role that do not say how long something took.
  std::vector<json> curve(const std::string& name, const std::string& role) const {
    std::ifstream file(work_ / name / role / "metrics.jsonl");
    std::vector<json> lines;
    for (std::string line; std::getline(file, line);) {
      const json all = json::parse(line);
      json kept;
      for (const char* key : {"step", "loss", "total_loss", "grad_norm", "balance_loss", "kd_loss",
                              "hidden_loss", "bytes_sent", "link_bytes", "skipped", "perplexity"}) {
        if (all.contains(key)) {
          kept[key] = all[key];
        }
      }
      lines.push_back(kept);
    }
    return lines;
  }

  fs::path work_;
};

TEST_F(OverlapProgram, ATeacherAndItsStudentHaveTheSameCurves) {
  const Outcome plain = distill("plain", "--optim.overlap_reduce=false --optim.overlap_gather=false");
  ASSERT_EQ(plain.exit_code, 0) << plain.err;
  const Outcome overlapped = distill("overlap", "--optim.overlap_reduce=true --optim.overlap_gather=true");
  ASSERT_EQ(overlapped.exit_code, 0) << overlapped.err;
  for (const std::string role : {"teacher", "student"}) {
    const std::vector<json> expected = curve("plain", role);
    EXPECT_GE(expected.size(), 8u);
    EXPECT_EQ(curve("overlap", role), expected) << role;
  }
  // And on from a checkpoint with the other setting: it is of the job, not of the run.
  const Outcome resumed = distill("overlap", "--optim.overlap_reduce=false", 10);
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
}

}  // namespace
}  // namespace athanor
