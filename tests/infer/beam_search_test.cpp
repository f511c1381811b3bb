// Beam search against exhaustive search over every text of a tiny vocabulary.
#include "infer/detail/beam_search.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "infer/sampler.hpp"

namespace athanor::infer::detail {
namespace {

using Tokens = std::vector<std::int64_t>;

// A "model" whose logits are any function of the last two tokens.
struct PairModel {
  explicit PairModel(std::int64_t vocab_size, int seed) : vocab(vocab_size) {
    at::manual_seed(static_cast<std::uint64_t>(seed));
    table = at::randn({vocab, vocab, vocab}, at::kDouble).mul_(2.0);
  }
  at::Tensor logits(const Tokens& text) const { return table[text[text.size() - 2]][text.back()]; }
  std::int64_t vocab = 0;
  at::Tensor table;
};

struct Best {
  Tokens tokens;
  double score = -1e300;
};

// Every text: ends with `end`, or at `limit` tokens.
void exhaustive(const PairModel& model, const GenerationOptions& options, const Tokens& prompt,
                const Tokens& generated, double sum, std::int64_t limit, Best& best) {
  const bool ended = !generated.empty() && generated.back() == options.end_of_document;
  if (ended || static_cast<std::int64_t>(generated.size()) == limit) {
    const double score = sum / std::pow(static_cast<double>(generated.size()), options.length_penalty);
    if (score > best.score) {
      best = {generated, score};
    }
    return;
  }
  Tokens text = prompt;
  text.insert(text.end(), generated.begin(), generated.end());
  std::vector<double> scores = log_softmax(logits_row(model.logits(text)));
  apply_repetition_penalty(scores, text, options.sampler.repetition_penalty);
  for (std::int64_t token = 0; token < model.vocab; ++token) {
    Tokens longer = generated;
    longer.push_back(token);
    exhaustive(model, options, prompt, longer, sum + scores[static_cast<std::size_t>(token)], limit, best);
  }
}

GenerationResult search(const PairModel& model, const GenerationOptions& options, const Tokens& prompt,
                        std::int64_t limit) {
  BeamSearch beams({0, prompt}, options, {limit, FinishReason::max_new_tokens});
  std::vector<Tokens> rows = {prompt};
  while (!rows.empty()) {
    std::vector<at::Tensor> logits;
    for (const Tokens& row : rows) {
      logits.push_back(model.logits(row));
    }
    std::vector<Tokens> next;
    for (const Continuation& step : beams.advance(at::stack(logits))) {
      next.push_back(rows[static_cast<std::size_t>(step.parent)]);
      next.back().push_back(step.token);
    }
    rows = std::move(next);
  }
  return beams.result();
}

GenerationOptions options_of(std::int64_t beams, double length_penalty, std::int64_t end) {
  GenerationOptions options;
  options.beams = beams;
  options.length_penalty = length_penalty;
  options.end_of_document = end;
  options.sampler.top_k = 0;
  return options;
}

TEST(BeamSearch, FindsTheBestTextWhenTheBeamHoldsAllPrefixes) {
  for (int seed = 0; seed < 5; ++seed) {
    const PairModel model(4, seed);
    const GenerationOptions options = options_of(64, 0.8, -1);
    const GenerationResult found = search(model, options, {1, 2}, 4);
    Best best;
    exhaustive(model, options, {1, 2}, {}, 0.0, 4, best);
    EXPECT_EQ(found.tokens, best.tokens) << seed;
    EXPECT_NEAR(found.beam_score, best.score, 1e-12) << seed;
    EXPECT_EQ(found.reason, FinishReason::max_new_tokens);
  }
}

TEST(BeamSearch, FindsTheBestTextWithAnEndToken) {
  int ended = 0;
  for (int seed = 0; seed < 8; ++seed) {
    const PairModel model(4, seed);
    const GenerationOptions options = options_of(64, 0.0, 3);  // penalty 0: the stop rule is exact
    const GenerationResult found = search(model, options, {1, 2}, 4);
    Best best;
    exhaustive(model, options, {1, 2}, {}, 0.0, 4, best);
    EXPECT_NEAR(found.beam_score, best.score, 1e-12) << seed;
    if (best.tokens.back() == 3) {
      ++ended;
      best.tokens.pop_back();
      EXPECT_EQ(found.reason, FinishReason::end_of_document);
    }
    EXPECT_EQ(found.tokens, best.tokens) << seed;
  }
  EXPECT_GT(ended, 0);
}

TEST(BeamSearch, DoesNotEndBeforeMinNewTokens) {
  for (int seed = 0; seed < 8; ++seed) {
    const PairModel model(4, seed);
    GenerationOptions options = options_of(64, 0.0, 3);
    options.min_new_tokens = 4;
    const GenerationResult found = search(model, options, {1, 2}, 4);
    EXPECT_EQ(found.tokens.size(), 4u) << seed;
    EXPECT_EQ(std::count(found.tokens.begin(), found.tokens.end(), 3), 0) << seed;
  }
}

TEST(BeamSearch, BeatsGreedyWhereTheFirstStepMisleads) {
  // Token 0 looks best first (0.6) but leads to a flat choice; token 1 (0.4) leads to a sure one.
  PairModel model(3, 0);
  model.table.fill_(-50.0);
  const auto set = [&](std::int64_t last, const std::vector<double>& probabilities) {
    for (std::int64_t token = 0; token < 3; ++token) {
      model.table.select(1, last).select(1, token).fill_(
          std::log(probabilities[static_cast<std::size_t>(token)]));
    }
  };
  set(2, {0.6, 0.4, 1e-20});
  set(0, {0.34, 0.33, 0.33});
  set(1, {1e-20, 1.0, 1e-20});
  GenerationOptions options = options_of(2, 1.0, -1);
  options.sampler.repetition_penalty = 1.0;
  const GenerationResult found = search(model, options, {2, 2}, 2);
  EXPECT_EQ(found.tokens, (Tokens{1, 1}));
  EXPECT_NEAR(found.log_probability, std::log(0.4), 1e-12);
  EXPECT_NEAR(found.beam_score, std::log(0.4) / 2.0, 1e-12);
}

TEST(BeamSearch, LengthPenaltyFavoursLongTexts) {
  PairModel model(2, 0);
  model.table.select(2, 0).fill_(std::log(0.55));
  model.table.select(2, 1).fill_(std::log(0.45));
  const auto length_at = [&](double penalty) {
    GenerationOptions options = options_of(2, penalty, 1);
    options.sampler.repetition_penalty = 1.0;
    return search(model, options, {0, 0}, 6).tokens.size();
  };
  EXPECT_EQ(length_at(0.0), 0u);  // the empty text, ended at once: log 0.45
  EXPECT_EQ(length_at(2.0), 6u);
}

TEST(BeamSearch, OfOneStepIsTheBestToken) {
  const PairModel model(5, 3);
  GenerationOptions options = options_of(3, 0.8, -1);
  options.sampler.repetition_penalty = 1.0;
  options.sampler.top_k = 2;  // fewer than the beams: rows are fewer, not repeated
  const GenerationResult found = search(model, options, {0, 1}, 1);
  EXPECT_EQ(found.tokens, (Tokens{model.logits({0, 1}).argmax().item<std::int64_t>()}));
}

}  // namespace
}  // namespace athanor::infer::detail
