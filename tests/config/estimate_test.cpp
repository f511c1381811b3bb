#include "config/estimate.hpp"

#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

RunConfig bench_config(const std::vector<std::string>& more = {}) {
  std::vector<std::string> words = {
      "bench", "step", "--config=" + (tests::source_folder() / "configs" / "bench-s.ini").string()};
  words.insert(words.end(), more.begin(), more.end());
  return parse(words).config;
}

TEST(Estimate, CountsTheBenchShape) {
  const RunConfig config = bench_config();
  const std::int64_t total = model::count_parameters(config.roles[0].model).total;
  EXPECT_NEAR(static_cast<double>(total), 55.4e6, 0.05e6);
  EXPECT_EQ(count_rank_parameters(config.roles[0].model, {}).total(), total);
}

TEST(Estimate, OneRankHoldsWhatTheModelCounts) {
  for (const std::vector<std::string>& more :
       std::vector<std::vector<std::string>>{{},
                                             {"--model.tie_embeddings=true"},
                                             {"--model.qk_norm=false", "--model.head_dim=48"},
                                             {"--moe.experts=0"},
                                             {"--moe.every=2", "--moe.shared_experts=2"}}) {
    const model::TransformerConfig model = bench_config(more).roles[0].model;
    EXPECT_EQ(count_rank_parameters(model, {}).total(), model::count_parameters(model).total);
  }
}

TEST(Estimate, ShardsAddUpToTheModel) {
  const model::TransformerConfig model = bench_config().roles[0].model;
  const RankParameters whole = count_rank_parameters(model, {});
  const RankParameters part = count_rank_parameters(model, {.dp = 2, .tp = 4, .ep = 8});
  EXPECT_EQ(part.expert * 8, whole.expert);
  EXPECT_EQ(part.tensor_sharded * 4, whole.tensor_sharded);
  EXPECT_EQ(part.key_value * 4, whole.key_value);
  EXPECT_EQ(part.replicated, whole.replicated);
  // tp beyond kv_heads repeats key and value heads instead of splitting them.
  EXPECT_EQ(count_rank_parameters(model, {.tp = 8}).key_value * 4, whole.key_value);
}

TEST(Estimate, RefusesWhatDoesNotFit) {
  const RunConfig config = bench_config();
  MemoryPlan plan;
  plan.parameters = 2'000'000'000;
  plan.worst.peak = 1'000'000'000;
  EXPECT_NO_THROW(check_memory(config, plan, 8'000'000'000, 2));
  expect_error([&] { check_memory(config, plan, 4'000'000'000, 2); }, base::ExitCode::usage,
               {"no memory for the model", "2180.0 MB", "4000.0 MB", "2 ranks", "model.recompute"});
}

TEST(Estimate, RefusesRoutingThatDoesNotFit) {
  MemoryPlan plan;
  plan.parameters = 2'000'000'000;
  plan.worst.peak = 1'000'000'000;
  expect_error([&] { check_memory(bench_config(), plan, 3'000'000'000, 1); }, base::ExitCode::usage,
               {"worst routing", "2180.0 MB", "3180.0 MB", "moe.capacity_factor", "plan.worst_case=warn"});
  EXPECT_NO_THROW(check_memory(bench_config({"--plan.worst_case=warn"}), plan, 3'000'000'000, 1));
  EXPECT_NO_THROW(check_memory(bench_config({"--plan.memory_bytes=4e9"}), plan, 1, 1));
  expect_error([&] { check_memory(bench_config({"--plan.memory_bytes=3e9"}), plan, 9'000'000'000, 1); },
               base::ExitCode::usage, {"plan.memory_bytes gives it 3000.0 MB"});
}

TEST(Estimate, DescribesThePlan) {
  const RunConfig config = bench_config({"--moe.balance_counts=micro_step"});
  const std::string text = describe_plan(config, config.roles[0], resolve_dims(config.roles[0], 2));
  for (const char* part :
       {"teacher: 2 ranks = dp 2 x tp 1, ep 2", "55.4", "active", "micro_step", "memory of a rank"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

}  // namespace
}  // namespace athanor::config
