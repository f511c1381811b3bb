// Padding of batches to a multiple of the tensor-parallel degree.
#include "infer/token_batch.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace athanor::infer {
namespace {

data::Batch two_rows_of_three() {
  data::Batch batch;
  batch.rows = 2;
  batch.seq = 3;
  batch.tokens = {1, 2, 3, 4, 5, 6};
  batch.labels = {2, 3, 4, 5, -100, 7};
  batch.positions = {0, 1, 2, 0, 1, 0};
  batch.documents = {0, 0, 0, 0, 0, 1};
  batch.sample_ids = {8, 9};
  batch.domains = {0, 0};
  return batch;
}

at::Tensor rows(std::vector<std::int64_t> values) {
  return at::tensor(values, at::kLong).view({2, -1});
}

TEST(TokenBatch, PadsEveryFieldWithWhatIsNeitherTokenNorLabel) {
  const nn::TokenBatch out = make_token_batch(two_rows_of_three(), 4);
  EXPECT_EQ(out.real_seq, 3);
  EXPECT_TRUE(at::equal(out.tokens_BS, rows({1, 2, 3, 0, 4, 5, 6, 0})));
  EXPECT_TRUE(at::equal(out.labels_BS, rows({2, 3, 4, -100, 5, -100, 7, -100})));
  EXPECT_TRUE(at::equal(out.positions_BS, rows({0, 1, 2, 3, 0, 1, 0, 1})));
  EXPECT_TRUE(at::equal(out.documents_BS, rows({0, 0, 0, 1, 0, 0, 1, 2})));
  EXPECT_TRUE(at::equal(out.sample_ids_B, at::tensor({8, 9}, at::kLong)));
}

TEST(TokenBatch, LeavesFittingSequencesAndSingleDocumentsAlone) {
  data::Batch batch = two_rows_of_three();
  batch.documents.assign(6, 0);
  const nn::TokenBatch out = make_token_batch(batch, 3);
  EXPECT_TRUE(at::equal(out.tokens_BS, rows({1, 2, 3, 4, 5, 6})));
  EXPECT_FALSE(out.documents_BS.defined());
}

TEST(TokenBatch, TakesBatchesWithoutRows) {
  data::Batch batch;
  batch.seq = 3;
  const nn::TokenBatch out = make_token_batch(batch, 2);
  EXPECT_EQ(out.tokens_BS.sizes(), (std::vector<std::int64_t>{0, 4}));
  EXPECT_EQ(out.sample_ids_B.numel(), 0);
  const nn::TokenBatch tokens_only = make_token_batch({}, 1, 0, 2);
  EXPECT_EQ(tokens_only.tokens_BS.sizes(), (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(tokens_only.positions_BS.sizes(), (std::vector<std::int64_t>{0, 2}));
}

TEST(TokenBatch, OfTokensAloneStartsAtTheGivenPosition) {
  const std::vector<std::vector<std::int64_t>> tokens = {{7}, {8}};
  const nn::TokenBatch out = make_token_batch(tokens, 1, 5, 2);
  EXPECT_EQ(out.real_seq, 1);
  EXPECT_TRUE(at::equal(out.tokens_BS, rows({7, 0, 8, 0})));
  EXPECT_TRUE(at::equal(out.positions_BS, rows({5, 6, 5, 6})));
}

}  // namespace
}  // namespace athanor::infer
