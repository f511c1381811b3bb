// The plans of --dry-run against runs of the program: bytes to the byte, memory within 10 %.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;

class MeasuredPlan : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  nlohmann::json run(const std::string& options, int ranks) {
    return result("bench step --json " + options, tests::on_ranks(ranks));
  }
  nlohmann::json plan(const std::string& options, int ranks) {
    return result(fmt::format("bench step --json --dry-run --ranks={} {}", ranks, options), "").at("teacher");
  }

  fs::path folder_ = fs::path(testing::TempDir()) / "measured-plan";

 private:
  nlohmann::json result(const std::string& arguments, const std::string& before) {
    const tests::Outcome outcome = tests::run_program(folder_, arguments, before);
    EXPECT_EQ(outcome.exit_code, 0) << arguments << "\n" << outcome.err;
    return outcome.exit_code == 0 ? outcome.json() : nlohmann::json::object();
  }
};

constexpr const char* tiny =
    " --model.vocab_size=512 --model.layers=2 --model.hidden=64 --model.heads=4 --model.kv_heads=2 "
    "--model.max_seq=64 --moe.experts=32 --moe.top_k=4 --moe.ffn=32 --moe.force_uniform=true --batch.seq=64 "
    "--bench.warmup_steps=1 --bench.rounds=1 --bench.steps_per_round=1 --batch.global=16 ";

TEST_F(MeasuredPlan, BytesAreThoseOfTheFormulae) {
  struct Case {
    int ranks;
    const char* options;
  };
  for (const Case& one : {Case{1, ""}, Case{2, "--parallel.ep=2"}, Case{4, "--parallel.ep=2 --optim.zero=0"},
                          Case{4, "--parallel.ep=2 --parallel.tp=4 --model.recompute=true --batch.micro=8"},
                          Case{4,
                               "--parallel.ep=4 --parallel.tp=2 --moe.shared_experts=1 --moe.every=2 "
                               "--precision.grad_comm=fp8 --precision.dispatch_comm=fp8 "
                               "--precision.combine_comm=bf16"},
                          Case{4,
                               "--moe.balance=sequence,switch --moe.balance_counts=micro_step "
                               "--moe.capacity_factor=4 --parallel.tp=2 --precision.grad_comm=bf16"}}) {
    SCOPED_TRACE(fmt::format("{} ranks {}", one.ranks, one.options));
    const std::string options = std::string(tiny) + one.options;
    const nlohmann::json planned = plan(options, one.ranks).at("sent_per_step").at("bytes");
    const nlohmann::json counted = run(options, one.ranks).at("bytes_sent_per_step");
    EXPECT_EQ(planned, counted);
    EXPECT_EQ(one.ranks == 1, counted.at("grad_dense") == 0);
  }
}

TEST_F(MeasuredPlan, MemoryIsWithinATenth) {
  const std::string shape =
      " --model.vocab_size=8192 --model.layers=2 --model.hidden=256 --model.heads=8 --model.kv_heads=4 "
      "--model.max_seq=256 --batch.seq=256 --bench.warmup_steps=3 --bench.rounds=1 "
      "--bench.steps_per_round=1 ";
  const std::string sparse =
      "--moe.experts=64 --moe.top_k=4 --moe.ffn=128 --moe.force_uniform=true --parallel.ep=2 ";
  for (const auto& [ranks, options] :
       {std::pair(2, sparse + "--batch.global=16"),
        std::pair(2, sparse + "--batch.global=32 --model.recompute=true"),
        std::pair(2, std::string("--batch.global=16 --parallel.tp=2 --moe.experts=0 --moe.balance=none "
                                 "--model.ffn=1024"))}) {
    SCOPED_TRACE(fmt::format("{} ranks {}", ranks, options));
    const auto planned = plan(shape + options, ranks).at("rank_bytes").get<double>();
    const auto measured = run(shape + options, ranks).at("peak_rss_bytes").get<double>();
    EXPECT_NEAR(planned / measured, 1.0, 0.1) << planned / 1e6 << " MB, measured " << measured / 1e6;
  }
}

TEST_F(MeasuredPlan, PlansTheTrillionAtOnce) {
  const std::string config = ATHANOR_SOURCE_DIR "/configs/teacher-1.3t.ini";
  const tests::Outcome outcome =
      tests::run_program(folder_, "train --dry-run --json --config=" + config, "timeout 20");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json plan = outcome.json().at("teacher");
  EXPECT_EQ(plan.at("ranks"), 1024);
  EXPECT_GT(plan.at("step_s").at("serial").get<double>(), plan.at("step_s").at("products").get<double>());
}

}  // namespace
}  // namespace athanor
