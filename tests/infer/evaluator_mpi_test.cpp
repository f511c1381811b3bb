// Losses per domain equal those computed token by token on one rank, on every layout.
#include "infer/evaluator.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "base/error.hpp"
#include "data/token_file.hpp"
#include "infer/layouts.hpp"
#include "infer/sampler.hpp"
#include "infer/token_batch.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::infer {
namespace {

constexpr std::int64_t seq = 9;  // odd: padded under tensor parallelism

// Two domains of 11 and 1 samples, in a folder of their own that all ranks see.
class Files {
 public:
  Files() {
    const auto own =
        std::filesystem::temp_directory_path() / ("athanor_evaluator_" + std::to_string(getpid()));
    folder_ = parallel::broadcast_string(own.string(), 0, tests::world());
    if (tests::world().rank() == 0) {
      write("many", 11 * seq + 4);
      write("one", seq + 1);
    }
    tests::world().barrier();
  }
  ~Files() {
    tests::world().barrier();
    if (tests::world().rank() == 0) {
      std::filesystem::remove_all(folder_);
    }
  }
  data::Dataset dataset(bool reset_attention = false) const {
    data::DatasetOptions options;
    options.sources = {{folder_ + "/many", 1.0, "many"}, {folder_ + "/one", 1.0, "one"}};
    options.seq = seq;
    options.reset_attention = reset_attention;
    return data::Dataset(options);
  }

 private:
  void write(const std::string& domain, std::int64_t tokens) const {
    data::TokenFileWriter writer(folder_ + "/" + domain, data::TokenType::uint16);
    for (std::int64_t i = 0; i < tokens; ++i) {
      const auto token = static_cast<std::int32_t>((i * i * 3 + i * 11 + 5) % 37);
      writer.add({&token, 1});
      if (i % 13 == 12) {
        writer.end_document();
      }
    }
    writer.end_document();
    writer.finish();
  }
  std::string folder_;
};

struct Direct {
  double sum = 0.0;
  std::int64_t tokens = 0;
  double loss() const { return sum / static_cast<double>(tokens); }
};

// Sample by sample and position by position, from full logits, on one rank.
Direct direct(const data::Dataset& dataset, std::int64_t domain, std::int64_t max_sequences) {
  at::NoGradGuard no_grad;
  const parallel::ProcessGrid grid;
  const tests::Model model(tests::small_config(), grid);
  const moe::BalanceState balance = tests::biased_state(model.transformer);
  model::ForwardContext context;
  context.training = false;
  context.balance = &balance;
  Direct out;
  for (std::int64_t sample = 0; sample < std::min(max_sequences, dataset.num_samples(domain)); ++sample) {
    const data::Batch batch = dataset.read_in_order(domain, sample, 1);
    const nn::TokenBatch tokens = make_token_batch(batch, 1);
    const at::Tensor h_BsD =
        model.transformer.blocks(model.transformer.embed(tokens, context), tokens, context).h_BsD;
    for (std::int64_t i = 0; i < seq; ++i) {
      const auto scores = log_softmax(logits_row(model.transformer.head_logits(h_BsD, i)[0]));
      out.sum -= scores[static_cast<std::size_t>(batch.labels[static_cast<std::size_t>(i)])];
      ++out.tokens;
    }
  }
  return out;
}

void expect_losses(const data::Dataset& dataset, std::int64_t max_sequences) {
  const std::int64_t limit = max_sequences > 0 ? max_sequences : 1000;
  const Direct many = direct(dataset, 0, limit);
  const Direct one = direct(dataset, 1, limit);
  for (const parallel::ParallelDims& dims : tests::layouts(tests::world().size())) {
    const parallel::ProcessGrid grid(dims, tests::world());
    const tests::Model model(tests::small_config(), grid);
    const moe::BalanceState balance = tests::biased_state(model.transformer);
    EvaluatorOptions options;
    options.rows_per_replica = 2;
    options.max_sequences = max_sequences;
    const EvaluationResult result = Evaluator(model.transformer, grid, options).evaluate(dataset, &balance);
    ASSERT_EQ(result.domains.size(), 2u);
    EXPECT_EQ(result.domains[0].domain, "many");
    EXPECT_EQ(result.domains[0].tokens, many.tokens) << tests::name(dims);
    EXPECT_NEAR(result.domains[0].loss, many.loss(), 1e-9) << tests::name(dims);
    EXPECT_NEAR(result.domains[0].perplexity, std::exp(many.loss()), 1e-6) << tests::name(dims);
    EXPECT_EQ(result.domains[1].tokens, one.tokens) << tests::name(dims);
    EXPECT_NEAR(result.domains[1].loss, one.loss(), 1e-9) << tests::name(dims);
    EXPECT_EQ(result.total.tokens, many.tokens + one.tokens);
    EXPECT_NEAR(result.total.loss, (many.sum + one.sum) / static_cast<double>(many.tokens + one.tokens), 1e-9)
        << tests::name(dims);
  }
}

TEST(Evaluator, EqualsDirectComputationOnEveryLayout) {
  const Files files;
  expect_losses(files.dataset(), 0);
}

TEST(Evaluator, StopsAfterTheFirstSequences) {
  const Files files;
  expect_losses(files.dataset(), 5);
}

TEST(Evaluator, KeepsDocumentsApart) {
  const Files files;
  expect_losses(files.dataset(true), 0);
  EXPECT_GT(std::abs(direct(files.dataset(true), 0, 100).sum - direct(files.dataset(), 0, 100).sum), 1e-3);
}

TEST(Evaluator, RefusesOptionsOutOfRange) {
  const parallel::ProcessGrid grid;
  const tests::Model model(tests::small_config(), grid);
  EXPECT_THROW(Evaluator(model.transformer, grid, {0, 0}), base::ConfigError);
  EXPECT_THROW(Evaluator(model.transformer, grid, {1, -1}), base::ConfigError);
}

}  // namespace
}  // namespace athanor::infer
