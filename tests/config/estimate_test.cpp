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

TEST(Estimate, BytesFollowTypeAndSharding) {
  const RunConfig f32 = bench_config();
  const parallel::ParallelDims dims{.dp = 2, .tp = 1, .ep = 2};
  const std::int64_t elements = count_rank_parameters(f32.roles[0].model, dims).total();
  const MemoryEstimate one = estimate_memory(f32, f32.roles[0], dims);
  EXPECT_EQ(one.parameters, 4 * elements);
  EXPECT_EQ(one.gradients, 4 * elements);

  const RunConfig bf16 = bench_config({"--precision.compute=bf16", "--optim.zero=0"});
  const MemoryEstimate two = estimate_memory(bf16, bf16.roles[0], dims);
  EXPECT_EQ(two.parameters, 2 * elements);
  EXPECT_EQ(two.gradients, 4 * elements);
  EXPECT_EQ(two.optimizer, 12 * elements);  // master weights and two moments on every holder

  // zero=1: dense state halves over the two replicas; experts have one holder each at ep = 2.
  const RankParameters count = count_rank_parameters(f32.roles[0].model, dims);
  EXPECT_EQ(one.optimizer, 8 * (count.expert + (elements - count.expert) / 2));

  const RunConfig recompute = bench_config({"--model.recompute=true"});
  EXPECT_LT(estimate_memory(recompute, recompute.roles[0], dims).activations, one.activations);
}

TEST(Estimate, RefusesWhatDoesNotFit) {
  MemoryEstimate estimate;
  estimate.parameters = 2'000'000'000;
  EXPECT_NO_THROW(check_memory(estimate, 8'000'000'000, 2));
  expect_error([&] { check_memory(estimate, 4'000'000'000, 2); }, base::ExitCode::usage,
               {"no memory for the model", "2130.0 MB", "4000.0 MB", "2 ranks", "model.recompute"});
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
