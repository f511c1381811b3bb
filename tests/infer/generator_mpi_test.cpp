// Generation with a cache on every layout equals choosing from full forward passes on one rank.
#include "infer/generator.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.hpp"
#include "infer/layouts.hpp"
#include "infer/token_batch.hpp"
#include "support/mpi_test.hpp"

namespace athanor::infer {
namespace {

using Tokens = std::vector<std::int64_t>;

std::vector<GenerationRequest> make_requests(const std::vector<std::int64_t>& lengths) {
  std::vector<GenerationRequest> requests;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    GenerationRequest request{100 + i, {}};
    for (std::int64_t j = 0; j < lengths[i]; ++j) {
      request.prompt.push_back((static_cast<std::int64_t>(i) * 5 + j * j * 7 + 1) % 37);
    }
    requests.push_back(request);
  }
  return requests;
}

GenerationOptions greedy(std::int64_t max_new_tokens) {
  GenerationOptions options;
  options.sampler.temperature = 0.0;
  options.max_new_tokens = max_new_tokens;
  return options;
}

// One rank, no cache: the whole text is read again for every token.
GenerationResult without_cache(const model::Transformer& model, const moe::BalanceState& balance,
                               const GenerationRequest& request, const GenerationOptions& options) {
  at::NoGradGuard no_grad;
  const Sampler sampler(options.sampler);
  GenerationResult result;
  Tokens text = request.prompt;
  model::ForwardContext context;
  context.training = false;
  context.balance = &balance;
  for (std::int64_t i = 0; i < options.max_new_tokens; ++i) {
    const auto length = static_cast<std::int64_t>(text.size());
    const nn::TokenBatch batch = make_token_batch(std::span<const Tokens>(&text, 1), length, 0, 1);
    const at::Tensor h_BsD = model.blocks(model.embed(batch, context), batch, context).h_BsD;
    const auto logits = logits_row(model.head_logits(h_BsD, length - 1)[0]);
    const SampledToken next = sampler.sample(logits, text, request.id, text.size());
    text.push_back(next.token);
    result.tokens.push_back(next.token);
    result.log_probability += next.log_probability;
  }
  return result;
}

void expect_equal(const std::vector<GenerationResult>& seen, const std::vector<GenerationResult>& expected,
                  const std::string& where) {
  ASSERT_EQ(seen.size(), expected.size()) << where;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].tokens, expected[i].tokens) << where << " request " << i;
    EXPECT_EQ(seen[i].reason, expected[i].reason) << where << " request " << i;
    EXPECT_NEAR(seen[i].log_probability, expected[i].log_probability, 1e-9) << where << " request " << i;
    EXPECT_NEAR(seen[i].beam_score, expected[i].beam_score, 1e-9) << where << " request " << i;
  }
}

// Generates on every layout of this launch and compares with `expected`.
void expect_on_all_layouts(const model::TransformerConfig& config,
                           const std::vector<GenerationRequest>& requests, const GenerationOptions& options,
                           const std::vector<GenerationResult>& expected) {
  for (const parallel::ParallelDims& dims : tests::layouts(tests::world().size())) {
    const parallel::ProcessGrid grid(dims, tests::world());
    const tests::Model model(config, grid);
    const moe::BalanceState balance = tests::biased_state(model.transformer);
    const auto seen = Generator(model.transformer, grid, options).generate(requests, &balance);
    expect_equal(seen, expected, tests::name(dims));
  }
}

std::vector<GenerationResult> on_one_rank(const model::TransformerConfig& config,
                                          const std::vector<GenerationRequest>& requests,
                                          const GenerationOptions& options) {
  const parallel::ProcessGrid grid;
  const tests::Model model(config, grid);
  const moe::BalanceState balance = tests::biased_state(model.transformer);
  return Generator(model.transformer, grid, options).generate(requests, &balance);
}

class GeneratorOnLayouts : public testing::TestWithParam<bool> {};

TEST_P(GeneratorOnLayouts, CacheEqualsFullForward) {
  model::TransformerConfig config = tests::small_config();
  config.moe.num_experts = GetParam() ? 8 : 0;
  const auto requests = make_requests({3, 7, 3, 4, 7, 1});
  for (const double temperature : {0.0, 1.0}) {
    GenerationOptions options = greedy(6);
    options.sampler.temperature = temperature;
    options.sampler.top_k = 10;
    options.sampler.top_p = 0.9;
    const parallel::ProcessGrid one;
    const tests::Model model(config, one);
    const moe::BalanceState balance = tests::biased_state(model.transformer);
    std::vector<GenerationResult> expected;
    for (const GenerationRequest& request : requests) {
      expected.push_back(without_cache(model.transformer, balance, request, options));
    }
    expect_on_all_layouts(config, requests, options, expected);
  }
}
INSTANTIATE_TEST_SUITE_P(DenseAndSparse, GeneratorOnLayouts, testing::Bool());

TEST(Generator, BeamSearchIsTheSameOnEveryLayout) {
  GenerationOptions options = greedy(8);
  options.beams = 3;
  options.end_of_document = 6;
  const auto requests = make_requests({3, 5, 3});
  const auto expected = on_one_rank(tests::small_config(), requests, options);
  expect_on_all_layouts(tests::small_config(), requests, options, expected);
}

TEST(Generator, OneBeamOfSearchIsGreedy) {
  const auto requests = make_requests({4, 4});
  GenerationOptions options = greedy(6);
  options.sampler.repetition_penalty = 1.0;
  const auto expected = on_one_rank(tests::small_config(), requests, options);
  options.beams = 2;
  options.sampler.top_k = 1;  // every row has one continuation: the greedy one
  const auto seen = on_one_rank(tests::small_config(), requests, options);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].tokens, expected[i].tokens);
    EXPECT_NEAR(seen[i].log_probability, expected[i].log_probability, 1e-12);
  }
}

TEST(Generator, ReplicasWithoutARequestTakePartWithoutRows) {
  const auto requests = make_requests({5});
  const auto expected = on_one_rank(tests::small_config(), requests, greedy(7));
  expect_on_all_layouts(tests::small_config(), requests, greedy(7), expected);
  expect_on_all_layouts(tests::small_config(), {}, greedy(7), {});
}

TEST(Generator, SmallBatchesGiveTheSameTexts) {
  const auto requests = make_requests({3, 3, 3, 3, 3});
  GenerationOptions options = greedy(5);
  const auto expected = on_one_rank(tests::small_config(), requests, options);
  options.max_batch = 2;
  expect_on_all_layouts(tests::small_config(), requests, options, expected);
}

TEST(Generator, StopsAtEndOfDocumentAndAtMaxSeq) {
  const auto requests = make_requests({3});
  const auto free = on_one_rank(tests::small_config(), requests, greedy(5));
  GenerationOptions options = greedy(5);
  options.end_of_document = free[0].tokens[2];
  auto ended = on_one_rank(tests::small_config(), requests, options);
  EXPECT_EQ(ended[0].reason, FinishReason::end_of_document);
  EXPECT_EQ(ended[0].tokens, (Tokens{free[0].tokens[0], free[0].tokens[1]}));
  const auto full = on_one_rank(tests::small_config(), requests, greedy(500));
  EXPECT_EQ(full[0].reason, FinishReason::max_seq);
  EXPECT_EQ(full[0].tokens.size(), 24u - 3u);
  EXPECT_EQ(free[0].reason, FinishReason::max_new_tokens);
}

TEST(Generator, DoesNotEndBeforeMinNewTokens) {
  const auto requests = make_requests({3});
  GenerationOptions options = greedy(5);
  options.end_of_document = on_one_rank(tests::small_config(), requests, options)[0].tokens[0];
  ASSERT_TRUE(on_one_rank(tests::small_config(), requests, options)[0].tokens.empty());
  options.min_new_tokens = 3;
  const Tokens tokens = on_one_rank(tests::small_config(), requests, options)[0].tokens;
  EXPECT_GE(tokens.size(), 3u);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), options.end_of_document), 0);
}

TEST(Generator, TakesModelsInNarrowerTypes) {
  const auto requests = make_requests({3, 4});
  const auto expected = on_one_rank(tests::small_config(), requests, greedy(5));
  const parallel::ProcessGrid grid;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const tests::Model model(tests::small_config(), grid, dtype);
    const moe::BalanceState balance = tests::biased_state(model.transformer);
    const auto seen = Generator(model.transformer, grid, greedy(5)).generate(requests, &balance);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(seen[i].tokens.size(), 5u);
      if (dtype == at::kFloat) {
        EXPECT_EQ(seen[i].tokens, expected[i].tokens);
        EXPECT_NEAR(seen[i].log_probability, expected[i].log_probability, 1e-4);
      }
    }
  }
}

TEST(Generator, EmptyPromptStartsANewDocument) {
  GenerationOptions options = greedy(4);
  options.end_of_document = 6;
  const auto empty = on_one_rank(tests::small_config(), {{0, {}}}, options);
  const auto spelled = on_one_rank(tests::small_config(), {{0, {6}}}, options);
  EXPECT_EQ(empty[0].tokens, spelled[0].tokens);
}

TEST(Generator, RefusesPromptsItCannotContinue) {
  const auto refuse = [](const Tokens& prompt) {
    EXPECT_THROW(on_one_rank(tests::small_config(), {{0, prompt}}, greedy(1)), base::ConfigError);
  };
  refuse({});
  refuse({1, 37});
  refuse({-1});
  refuse(Tokens(24, 1));
}

}  // namespace
}  // namespace athanor::infer
