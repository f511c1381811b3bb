// Feed-forward layer, embedding and chunked cross-entropy on one rank: finite differences, sinks and plain
// values.
#include "nn/vocab_parallel.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "nn/feed_forward.hpp"
#include "support/finite_difference.hpp"

namespace athanor::nn {
namespace {

using tests::expect_close;
using tests::gradients_match;
using tests::random_tensor;
using Inputs = std::vector<at::Tensor>;

const parallel::Communicator alone;

at::Tensor labels_of(std::int64_t batch, std::int64_t seq, std::int64_t vocab) {
  at::Tensor labels =
      (at::arange(batch * seq, at::kLong) * 7).remainder(vocab).view({batch, seq}).contiguous();
  labels.view(-1)[1].fill_(ignored_label);
  return labels;
}

at::Tensor plain_cross_entropy(const at::Tensor& h, const at::Tensor& weight, const at::Tensor& labels) {
  const at::Tensor logits = at::matmul(h.reshape({-1, h.size(-1)}), weight.t());
  return at::cross_entropy_loss(logits, labels.reshape(-1), {}, at::Reduction::None, ignored_label);
}

TEST(CrossEntropy, GradientsMatchFiniteDifferencesForAnyChunk) {
  const at::Tensor labels = labels_of(2, 5, 11);
  for (const std::int64_t chunk : {1, 3, 10, 64}) {
    const auto function = [&](const Inputs& in) {
      return vocab_parallel_cross_entropy(in[0], {in[1]}, labels, 0, alone, {chunk}).sum * 1.7;
    };
    EXPECT_TRUE(gradients_match(function, {random_tensor({2, 5, 6}, 1), random_tensor({11, 6}, 2)}));
  }
}

TEST(CrossEntropy, MatchesPlainValuesInEveryType) {
  const at::Tensor labels = labels_of(2, 40, 101);
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor h = random_tensor({2, 40, 16}, 1, dtype).requires_grad_();
    const at::Tensor w = random_tensor({101, 16}, 2, dtype).requires_grad_();
    const CrossEntropy loss = vocab_parallel_cross_entropy(h, {w}, labels, 0, alone, {});
    const at::Tensor h64 = h.detach().to(at::kDouble).requires_grad_(),
                     w64 = w.detach().to(at::kDouble).requires_grad_();
    const at::Tensor expected = plain_cross_entropy(h64, w64, labels);
    const double tolerance = dtype == at::kDouble ? 1e-13 : dtype == at::kFloat ? 1e-5 : 2e-2;
    EXPECT_EQ(loss.sum.scalar_type(), parallel::accumulation_type(dtype));
    expect_close(loss.per_token, expected, tolerance, "per token");
    expect_close(loss.sum, expected.sum(), tolerance, "sum");
    EXPECT_FALSE(loss.per_token.requires_grad());
    loss.sum.backward();
    expected.sum().backward();
    expect_close(h.grad(), h64.grad(), tolerance, "dh");
    expect_close(w.grad(), w64.grad(), tolerance, "dweight");
  }
}

TEST(CrossEntropy, Fp16KeepsSmallProbabilities) {
  // Probabilities of 2^-26 are 0 in fp16; 400 equal ones of them must still reach the gradient of their
  // weight rows.
  const at::Tensor h = at::ones({400, 1, 1}, at::kHalf);
  at::Tensor w = at::full({2, 1}, -9.0, at::kHalf);
  w[0].fill_(9.0);
  w.requires_grad_();
  const at::Tensor labels = at::zeros({400, 1}, at::kLong);
  parallel::GradAccumulator sink;
  sink.attach(at::empty({2, 1}, at::kFloat));
  vocab_parallel_cross_entropy(h, {w, &sink}, labels, 0, alone, {}).sum.backward();
  const double expected = 400.0 / (1.0 + std::exp(18.0));
  EXPECT_NEAR(sink.buffer()[1].item<double>(), expected, 0.1 * expected);
}

TEST(CrossEntropy, AddsToASharedSinkTimesTheSeed) {
  const at::Tensor labels = labels_of(1, 6, 11);
  const at::Tensor h = random_tensor({1, 6, 4}, 1), w = random_tensor({11, 4}, 2).requires_grad_();
  parallel::GradAccumulator sink;
  sink.attach(at::empty({11, 4}, at::kDouble));
  sink.add(at::ones({11, 4}, at::kDouble));  // a tied embedding was here first
  const CrossEntropy loss = vocab_parallel_cross_entropy(h, {w, &sink}, labels, 0, alone, {4});
  (loss.sum * 3.0).backward();
  const at::Tensor leaf = w.detach().clone().requires_grad_();
  plain_cross_entropy(h, leaf, labels).sum().backward();
  EXPECT_FALSE(w.grad().defined());
  expect_close(sink.buffer(), leaf.grad() * 3.0 + 1.0, 1e-13, "sink");
}

TEST(CrossEntropy, NothingButTheLossWithoutGradients) {
  const at::NoGradGuard no_grad;
  const at::Tensor labels = labels_of(1, 6, 11);
  const at::Tensor h = random_tensor({1, 6, 4}, 1), w = random_tensor({11, 4}, 2).requires_grad_();
  const CrossEntropy loss = vocab_parallel_cross_entropy(h, {w}, labels, 0, alone, {});
  EXPECT_FALSE(loss.sum.requires_grad());
  expect_close(loss.per_token, plain_cross_entropy(h, w, labels), 1e-13, "per token");
  EXPECT_EQ(loss.per_token[1].item<double>(), 0.0);
}

/// Clones what it sees and then spoils and restores it, as an encoder that selects in place does.
struct RecordingObserver {
  std::vector<at::Tensor> logits;
  std::vector<std::int64_t> first_tokens;
  CrossEntropyOptions options(std::int64_t chunk) {
    return {chunk, [this](at::Tensor& logits_Cv, std::int64_t first_token) {
              EXPECT_FALSE(at::GradMode::is_enabled());
              EXPECT_TRUE(logits_Cv.is_contiguous());
              logits.push_back(logits_Cv.clone());
              first_tokens.push_back(first_token);
              logits_Cv.fill_(-1e4);
              logits_Cv.copy_(logits.back());
            }};
  }
};

TEST(CrossEntropy, ObserverSeesTheLogitsAndChangesNothing) {
  const at::Tensor labels = labels_of(2, 5, 11);
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const std::int64_t chunk : {1, 3, 10, 64}) {
      const auto run = [&](const CrossEntropyOptions& options) {
        const at::Tensor h = random_tensor({2, 5, 6}, 1, dtype).requires_grad_();
        const at::Tensor w = random_tensor({11, 6}, 2, dtype).requires_grad_();
        const CrossEntropy loss = vocab_parallel_cross_entropy(h, {w}, labels, 0, alone, options);
        (loss.sum * 1.7).backward();
        return Inputs{loss.sum.detach(), loss.per_token, h.grad(), w.grad()};
      };
      RecordingObserver observer;
      const Inputs watched = run(observer.options(chunk)), plain = run({chunk});
      for (std::size_t i = 0; i < plain.size(); ++i) {
        EXPECT_TRUE(at::equal(watched[i], plain[i])) << "result " << i << ", chunk " << chunk;
      }
      for (std::size_t i = 0; i < observer.first_tokens.size(); ++i) {
        EXPECT_EQ(observer.first_tokens[i], static_cast<std::int64_t>(i) * chunk);
      }
      const at::Tensor h_ND = random_tensor({2, 5, 6}, 1, dtype).view({10, 6});
      const at::Tensor expected = at::mm(h_ND, random_tensor({11, 6}, 2, dtype).t());
      expect_close(at::cat(observer.logits), expected, dtype == at::kBFloat16 ? 1e-2 : 1e-6, "logits");
    }
  }
}

TEST(CrossEntropy, ObserverSeesTheLogitsWithoutGradients) {
  const at::NoGradGuard no_grad;
  const at::Tensor labels = labels_of(1, 6, 11);
  const at::Tensor h = random_tensor({1, 6, 4}, 1), w = random_tensor({11, 4}, 2).requires_grad_();
  RecordingObserver observer;
  const CrossEntropy loss = vocab_parallel_cross_entropy(h, {w}, labels, 0, alone, observer.options(4));
  expect_close(at::cat(observer.logits), at::mm(h.view({6, 4}), w.t()), 1e-13, "logits");
  expect_close(loss.per_token, plain_cross_entropy(h, w, labels), 1e-13, "per token");
  RecordingObserver nobody;
  vocab_parallel_cross_entropy(h.narrow(0, 0, 0), {w}, labels.narrow(0, 0, 0), 0, alone, nobody.options(4));
  EXPECT_TRUE(nobody.logits.empty());
}

TEST(CrossEntropy, NoTokens) {
  const at::Tensor h = at::empty({0, 6, 4}, at::kFloat).requires_grad_();
  const at::Tensor w = random_tensor({11, 4}, 2, at::kFloat).requires_grad_();
  const CrossEntropy loss = vocab_parallel_cross_entropy(h, {w}, at::empty({0, 6}, at::kLong), 0, alone, {});
  EXPECT_EQ(loss.sum.item<double>(), 0.0);
  loss.sum.backward();
  EXPECT_EQ(w.grad().abs().max().item<double>(), 0.0);
}

TEST(Embedding, GradientsSumOverRepeatedTokens) {
  parallel::ParameterMap parameters({.seed = 1, .dtype = at::kDouble});
  const parallel::ProcessGrid grid;
  const VocabParallelEmbedding embedding(9, 4, 1.0, "embedding.weight", parameters, grid);
  const at::Tensor tokens = at::tensor({3, 0, 3, 8, 3, 0}, at::kLong).view({2, 3});
  const auto parameter = embedding.weight();
  const at::Tensor y = embedding.forward(tokens);
  expect_close(y, parameter->value.detach().index_select(0, tokens.view(-1)).view({2, 3, 4}), 0.0, "rows");
  const at::Tensor dy = random_tensor({2, 3, 4}, 5);
  const at::Tensor expected = at::zeros({9, 4}, at::kDouble).index_add(0, tokens.view(-1), dy.view({6, 4}));
  y.backward(dy);
  expect_close(parameter->value.grad(), expected, 1e-14, "gradient through autograd");

  parameter->grad.attach(at::full({9, 4}, 5.0, at::kDouble));
  for (int pass = 0; pass < 2; ++pass) {
    embedding.forward(tokens).backward(dy);
  }
  expect_close(parameter->grad.buffer(), expected * 2, 1e-14, "gradient in the sink, twice");
  EXPECT_THROW(embedding.forward(tokens + 1), base::InternalError);
}

TEST(FeedForward, GradientsMatchFiniteDifferences) {
  parallel::ParameterMap parameters({.seed = 1, .dtype = at::kDouble});
  const parallel::ProcessGrid grid;
  const FeedForward layer({.hidden = 5, .ffn = 7, .init_std = 0.5, .output_init_std = 0.5}, "ffn.",
                          parameters, grid);
  const at::Tensor leaf = random_tensor({2, 3, 5}, 1).requires_grad_(), weight = random_tensor({2, 3, 5}, 2);
  std::vector<tests::CheckedGradient> checked;
  for (const auto& parameter : parameters.all()) {
    parameter->grad.attach(at::empty_like(parameter->value.detach()));
  }
  (layer.forward(leaf) * weight).sum().backward();
  checked.push_back({leaf.detach(), leaf.grad(), "x"});
  for (const auto& parameter : parameters.all()) {
    checked.push_back({parameter->value.detach(), parameter->grad.buffer(), parameter->name});
  }
  const auto value = [&] { return (layer.forward(leaf) * weight).sum().item<double>(); };
  EXPECT_TRUE(tests::gradients_match_values(value, checked));
}

TEST(ReadWeight, FollowsTrainableAttachedAndGradMode) {
  parallel::ParameterMap parameters({.dtype = at::kDouble});
  parallel::ParameterOptions options;
  options.name = "w";
  options.shard = parallel::ShardSpec::whole({2, 3});
  const auto parameter = parameters.add(options);
  EXPECT_EQ(read_weight(parameter).sink, nullptr);
  EXPECT_TRUE(read_weight(parameter).tensor.requires_grad());
  parameter->grad.attach(at::empty({2, 3}, at::kDouble));
  EXPECT_EQ(read_weight(parameter).sink, &parameter->grad);
  {
    const at::NoGradGuard no_grad;
    EXPECT_EQ(read_weight(parameter).sink, nullptr);
  }
  parameter->trainable = false;
  EXPECT_EQ(read_weight(parameter).sink, nullptr);
  EXPECT_FALSE(read_weight(parameter).tensor.requires_grad());
}

TEST(GatherLogits, IsThePlainProductOnOneRank) {
  const at::Tensor h = random_tensor({3, 4}, 1), w = random_tensor({11, 4}, 2);
  expect_close(gather_logits(h, w, 11, alone), at::mm(h, w.t()), 1e-15, "logits");
}

}  // namespace
}  // namespace athanor::nn
