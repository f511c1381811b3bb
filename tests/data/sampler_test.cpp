#include "data/sampler.hpp"

#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using tests::counting;
using tests::message_of;
using tests::TempFolder;
using tests::write_file;
using tests::write_tokens;

class SamplerTest : public ::testing::Test {
 protected:
  SamplerTest() {
    write_tokens(folder_ / "a", {counting(0, 2000)});
    write_tokens(folder_ / "b", {counting(3000, 700)});
    dataset_ = std::make_unique<Dataset>(DatasetOptions{
        .sources = {{folder_ / "a", 2.0, "a"}, {folder_ / "b", 1.0, "b"}}, .seq = 5, .seed = 4});
  }

  // Tokens of a step in order of position, gathered over replicas.
  std::vector<std::int32_t> step_tokens(const DataCursor& cursor, std::int64_t replicas,
                                        std::int64_t micro) const {
    std::vector<std::int32_t> tokens;
    for (std::int64_t r = 0; r < replicas; ++r) {
      const BatchSampler sampler(*dataset_,
                                 {.global_batch = 24, .micro_batch = micro, .replica = {r, replicas}});
      const std::vector<Batch> batches = sampler.read_step(cursor);
      EXPECT_EQ(static_cast<std::int64_t>(batches.size()), sampler.micro_batches_per_step());
      for (const Batch& batch : batches) {
        EXPECT_EQ(batch.rows, micro);
        tokens.insert(tokens.end(), batch.tokens.begin(), batch.tokens.end());
      }
    }
    return tokens;
  }

  TempFolder folder_;
  std::unique_ptr<Dataset> dataset_;
};

TEST_F(SamplerTest, ReplicasTogetherReadTheGlobalBatch) {
  for (const std::int64_t position : {0, 24, 1008}) {
    const std::vector<std::int32_t> whole = dataset_->read_training(position, 24).tokens;
    EXPECT_EQ(step_tokens({position}, 1, 24), whole);
    EXPECT_EQ(step_tokens({position}, 1, 6), whole);
    EXPECT_EQ(step_tokens({position}, 2, 4), whole);
    EXPECT_EQ(step_tokens({position}, 3, 8), whole);
    EXPECT_EQ(step_tokens({position}, 8, 1), whole);
  }
}

TEST_F(SamplerTest, AdvancesByTheGlobalBatch) {
  const BatchSampler sampler(*dataset_, {.global_batch = 24, .micro_batch = 4, .replica = {1, 3}});
  EXPECT_EQ(sampler.advance({48}).next_position, 72);
  EXPECT_EQ(sampler.read_step({48})[1].sample_ids, (std::vector<std::int64_t>{60, 61, 62, 63}));
}

TEST_F(SamplerTest, RefusesNumbersThatDoNotDivide) {
  const auto refusal = [&](const SamplerOptions& options) {
    return message_of<base::ConfigError>([&] { BatchSampler sampler(*dataset_, options); });
  };
  EXPECT_CONTAINS(refusal({.global_batch = 25, .micro_batch = 1, .replica = {0, 2}}), "batch.global=25");
  EXPECT_CONTAINS(refusal({.global_batch = 0, .micro_batch = 1, .replica = {0, 2}}), "batch.global=0");
  EXPECT_CONTAINS(refusal({.global_batch = 24, .micro_batch = 5, .replica = {0, 2}}), "batch.micro=5");
  EXPECT_CONTAINS(refusal({.global_batch = 24, .micro_batch = 0, .replica = {0, 2}}), "batch.micro=0");
}

TEST_F(SamplerTest, PrefetcherEqualsDirectReads) {
  const BatchSampler sampler(*dataset_, {.global_batch = 24, .micro_batch = 4, .replica = {1, 2}});
  DataCursor cursor{240};
  for (const int depth : {1, 3}) {
    Prefetcher prefetcher(sampler, cursor, depth);
    for (int step = 0; step < 60; ++step) {
      ASSERT_EQ(prefetcher.cursor().next_position, cursor.next_position);
      const std::vector<Batch> expected = sampler.read_step(cursor);
      const std::vector<Batch> read = prefetcher.take();
      ASSERT_EQ(read.size(), expected.size());
      for (std::size_t i = 0; i < read.size(); ++i) {
        ASSERT_EQ(read[i].tokens, expected[i].tokens);
        ASSERT_EQ(read[i].labels, expected[i].labels);
        ASSERT_EQ(read[i].sample_ids, expected[i].sample_ids);
      }
      cursor = sampler.advance(cursor);
    }
  }
}

TEST_F(SamplerTest, PrefetcherStopsWhileNobodyTakes) {
  const BatchSampler sampler(*dataset_, {.global_batch = 24, .micro_batch = 24, .replica = {0, 1}});
  for (int i = 0; i < 20; ++i) {
    const Prefetcher prefetcher(sampler, {0}, 2);
  }
}

// A negative id in the file is found by the reading thread; the taker must see it, every time it asks.
TEST_F(SamplerTest, PrefetcherHandsErrorsToTheTaker) {
  std::vector<std::int32_t> ids = counting(0, 500);
  write_tokens(folder_ / "bad", {ids}, TokenType::int32);
  std::string bytes = tests::read_file(folder_ / "bad.bin");
  bytes[4 * 250 + 3] = '\x80';
  write_file(folder_ / "bad.bin", bytes);
  const Dataset dataset({.sources = {{folder_ / "bad", 1.0, "bad"}}, .seq = 4});
  const BatchSampler sampler(dataset, {.global_batch = 10, .micro_batch = 10, .replica = {0, 1}});
  Prefetcher prefetcher(sampler, {0}, 2);
  const auto read_all = [&] {
    for (int step = 0; step < 13; ++step) {
      prefetcher.take();
    }
  };
  EXPECT_CONTAINS(message_of<base::DataError>(read_all), "bad.bin holds the id -");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { prefetcher.take(); }), "bad.bin holds the id -");
}

}  // namespace
}  // namespace athanor::data
