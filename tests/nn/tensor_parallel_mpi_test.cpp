// Layers over a tensor-parallel group of all ranks against the same layers on one rank: outputs, input
// gradients and parameter gradients (summed over the holders of a slice), odd sizes, padding and empty shards
// included.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.hpp"
#include "nn/attention.hpp"
#include "nn/feed_forward.hpp"
#include "nn/vocab_parallel.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/finite_difference.hpp"
#include "support/mpi_test.hpp"

namespace athanor::nn {
namespace {

using parallel::Axis;
using tests::expect_close;
using tests::random_tensor;

const parallel::ProcessGrid& tensor_grid() {
  static const parallel::ProcessGrid grid(
      parallel::ParallelDims::from_role_size(tests::world().size(), tests::world().size(), 1),
      tests::world());
  return grid;
}

/// This rank's slice of a logical tensor.
at::Tensor slice_of(at::Tensor whole, const parallel::ShardSpec& shard) {
  for (std::size_t dim = 0; dim < shard.offset.size(); ++dim) {
    whole = whole.narrow(static_cast<std::int64_t>(dim), shard.offset[dim], shard.local_shape[dim]);
  }
  return whole;
}

/// A layer's parameters with accumulators.
struct Parameters {
  Parameters() : map({.seed = 11, .dtype = at::kDouble}) {}
  void attach() {
    for (const auto& parameter : map.all()) {
      parameter->grad.attach(at::empty_like(parameter->value.detach()));
    }
  }
  parallel::ParameterMap map;
};

/// EXPECTs that the gradients, summed over all ranks that hold the same slice, are the slices of the whole
/// ones. Contributions are placed into the logical shape, so overlapping slices add up by themselves.
void expect_same_gradients(const Parameters& sharded, const Parameters& whole) {
  for (const auto& parameter : sharded.map.all()) {
    parameter->grad.finish();
    const auto reference = whole.map.find(parameter->name);
    ASSERT_NE(reference, nullptr);
    expect_close(parameter->value.detach(), slice_of(reference->value.detach(), parameter->shard), 0.0,
                 parameter->name + " value");
    at::Tensor sum = at::zeros(parameter->shard.global_shape, at::kDouble);
    slice_of(sum, parameter->shard).copy_(parameter->grad.buffer());
    parallel::all_reduce_(sum, parallel::ReduceOp::sum, tests::world(), parallel::Traffic::other);
    reference->grad.finish();
    expect_close(sum, reference->grad.buffer(), 1e-11, parameter->name + " gradient");
  }
}

/// One run of a layer: y = run(x part), backward with seed part.
using Run = std::function<at::Tensor(const at::Tensor& x_BsD)>;

/// Compares y and dx of this rank's positions with those of the whole sequence.
void expect_same_forward_and_backward(const Run& sharded, const Run& whole, const at::Tensor& x_BSD) {
  const int tp = tests::world().size();
  const std::int64_t part = x_BSD.size(1) / tp;
  const std::int64_t first = part * tests::world().rank();
  const at::Tensor seed_BSD = random_tensor(x_BSD.sizes(), 77);
  const at::Tensor x_whole = x_BSD.clone().requires_grad_();
  const at::Tensor x_part = x_BSD.narrow(1, first, part).clone().requires_grad_();
  const at::Tensor y_whole = whole(x_whole);
  const at::Tensor y_part = sharded(x_part);
  expect_close(y_part, y_whole.narrow(1, first, part), 1e-11, "y");
  y_whole.backward(seed_BSD);
  y_part.backward(seed_BSD.narrow(1, first, part).contiguous());
  expect_close(x_part.grad(), x_whole.grad().narrow(1, first, part), 1e-11, "dx");
}

/// tp * 3 positions, the last of them padding when there is more than one rank.
TokenBatch batch_of(std::int64_t batch) {
  const int tp = tests::world().size();
  TokenBatch out;
  const std::int64_t seq = padded_sequence(3 * tp - (tp > 1 ? 1 : 0), tp);
  out.tokens_BS = (at::arange(batch * seq, at::kLong) * 5).remainder(11).view({batch, seq});
  out.labels_BS = (at::arange(batch * seq, at::kLong) * 3).remainder(11).view({batch, seq}).contiguous();
  out.labels_BS.select(1, seq - 1).fill_(ignored_label);
  out.positions_BS = at::arange(seq, at::kLong).expand({batch, seq}).contiguous();
  out.real_seq = tp > 1 ? seq - 1 : seq;
  return out;
}

TEST(TensorParallel, CausalAttentionIsThatOfOneRank) {
  // 8 query heads; 8, 4, 2, 1 key/value heads: with more ranks than key/value heads a head is held several
  // times.
  for (const std::int64_t kv_heads : {8, 4, 2, 1}) {
    for (const bool documents : {false, true}) {
      const AttentionOptions options{
          .hidden = 10, .heads = 8, .kv_heads = kv_heads, .head_dim = 6, .init_std = 0.4};
      Parameters sharded, whole;
      const parallel::ProcessGrid one;
      const CausalAttention layer(options, "a.", sharded.map, tensor_grid());
      const CausalAttention reference(options, "a.", whole.map, one);
      sharded.attach();
      whole.attach();
      TokenBatch batch = batch_of(2);
      if (documents) {
        batch.documents_BS = batch.positions_BS.floor_divide(2).contiguous();
      }
      const RotaryTables rotary = rotary_tables(batch.positions_BS, 6, 100.0, at::kDouble);
      const AttentionContext context{&batch, &rotary, nullptr, 0};
      expect_same_forward_and_backward([&](const at::Tensor& x) { return layer.forward(x, context); },
                                       [&](const at::Tensor& x) { return reference.forward(x, context); },
                                       random_tensor({2, batch.tokens_BS.size(1), 10}, 5));
      expect_same_gradients(sharded, whole);
    }
  }
}

TEST(TensorParallel, CausalAttentionRefusesHeadsThatDoNotDivide) {
  if (tests::world().size() == 1) {
    return;  // one rank divides everything
  }
  Parameters parameters;
  const AttentionOptions odd{.hidden = 10, .heads = 7, .kv_heads = 7, .head_dim = 6};
  EXPECT_THROW(CausalAttention(odd, "a.", parameters.map, tensor_grid()), base::ConfigError);
  const AttentionOptions three{.hidden = 10, .heads = 12, .kv_heads = 3, .head_dim = 6};
  EXPECT_THROW(CausalAttention(three, "b.", parameters.map, tensor_grid()), base::ConfigError);
}

TEST(TensorParallel, FeedForwardIsThatOfOneRankForAnyWidth) {
  for (const std::int64_t ffn : {8, 7, 2}) {  // 2 leaves ranks without a column at tp 4
    const FeedForwardOptions options{.hidden = 5, .ffn = ffn, .init_std = 0.4, .output_init_std = 0.4};
    Parameters sharded, whole;
    const parallel::ProcessGrid one;
    const FeedForward layer(options, "f.", sharded.map, tensor_grid());
    const FeedForward reference(options, "f.", whole.map, one);
    sharded.attach();
    whole.attach();
    expect_same_forward_and_backward([&](const at::Tensor& x) { return layer.forward(x); },
                                     [&](const at::Tensor& x) { return reference.forward(x); },
                                     random_tensor({2, 3 * tests::world().size(), 5}, 5));
    expect_same_gradients(sharded, whole);
  }
}

/// Embedding, one linear-free path, and the loss with a tied weight: h = embedding * 0.7.
struct TiedModel {
  TiedModel(std::int64_t vocab, const parallel::ProcessGrid& grid)
      : tp(&grid.comm(Axis::tensor)), embedding(vocab, 6, 1.0, "embedding.weight", parameters.map, grid) {
    parameters.attach();
  }
  CrossEntropy run(const TokenBatch& batch, std::int64_t chunk) const {
    const at::Tensor h_BsD = embedding.forward(batch.tokens_BS) * 0.7;
    return vocab_parallel_cross_entropy(h_BsD, read_weight(embedding.weight()), batch.labels_BS,
                                        embedding.weight()->shard.offset[0], *tp, {chunk});
  }
  const parallel::Communicator* tp;
  Parameters parameters;
  VocabParallelEmbedding embedding;
};

TEST(TensorParallel, EmbeddingAndCrossEntropyAreThoseOfOneRank) {
  // 11 and 13 divide unevenly; with 11 and 4 ranks the last one has 2 rows; 9 leaves it none.
  for (const std::int64_t vocab : {13, 12, 11}) {
    for (const std::int64_t chunk : {4, 512}) {
      const parallel::ProcessGrid one;
      const TiedModel sharded(vocab, tensor_grid()), whole(vocab, one);
      const TokenBatch batch = batch_of(2);
      const CrossEntropy loss = sharded.run(batch, chunk), expected = whole.run(batch, chunk);
      expect_close(loss.per_token, expected.per_token, 1e-12, "per token");
      expect_close(loss.sum, expected.sum, 1e-12, "sum");
      (loss.sum * 1.3).backward();
      (expected.sum * 1.3).backward();
      expect_same_gradients(sharded.parameters, whole.parameters);
    }
  }
}

TEST(TensorParallel, AnEmptyVocabularyShardTakesPart) {
  const parallel::ProcessGrid one;
  const TiedModel sharded(9, tensor_grid()), whole(9, one);  // at tp 4 blocks of 3, 3, 3, 0
  TokenBatch batch = batch_of(1);
  batch.tokens_BS.remainder_(9);
  batch.labels_BS = at::where(batch.labels_BS.ge(0), batch.labels_BS.remainder(9), batch.labels_BS);
  const CrossEntropy loss = sharded.run(batch, 2), expected = whole.run(batch, 2);
  expect_close(loss.sum, expected.sum, 1e-12, "sum");
  loss.sum.backward();
  expected.sum.backward();
  expect_same_gradients(sharded.parameters, whole.parameters);
}

TEST(TensorParallel, LogitsObserverSeesItsSliceOfTheSameChunksOnEveryRank) {
  const parallel::Communicator& tp = tensor_grid().comm(Axis::tensor);
  const TokenBatch batch = batch_of(2);
  const std::int64_t seq = batch.tokens_BS.size(1), part = seq / tp.size();
  const at::Tensor h = random_tensor({2, seq, 6}, 1);
  const at::Tensor h_part = h.narrow(1, part * tp.rank(), part).contiguous();
  for (const std::int64_t vocab : {13, 11, 9}) {  // 9 leaves the last of 4 ranks no row
    const parallel::Block block = parallel::block_of(vocab, tp.size(), tp.rank());
    const at::Tensor weight = random_tensor({vocab, 6}, 2).narrow(0, block.first, block.count).contiguous();
    const at::Tensor labels =
        at::where(batch.labels_BS.ge(0), batch.labels_BS.remainder(vocab), batch.labels_BS);
    const auto loss = [&](const CrossEntropyOptions& options) {
      return vocab_parallel_cross_entropy(h_part, {weight}, labels, block.first, tp, options);
    };
    std::vector<at::Tensor> seen;
    std::int64_t next = 0;
    const CrossEntropy watched =
        loss({4, [&](at::Tensor& logits_Cv, std::int64_t first) {
                EXPECT_EQ(first, next);
                next += logits_Cv.size(0);
                at::Tensor sum = logits_Cv.sum(1);  // an observer may communicate
                parallel::all_reduce_(sum, parallel::ReduceOp::sum, tp, parallel::Traffic::other);
                const at::Tensor rows = h.view({2 * seq, 6}).narrow(0, first, logits_Cv.size(0));
                expect_close(sum, at::mm(rows, random_tensor({vocab, 6}, 2).t()).sum(1), 1e-12,
                             "sum over the vocabulary");
                seen.push_back(logits_Cv.clone());
              }});
    EXPECT_EQ(next, 2 * seq);
    expect_close(at::cat(seen), at::mm(h.view({2 * seq, 6}), weight.t()), 1e-13, "logits");
    EXPECT_TRUE(at::equal(watched.per_token, loss({4}).per_token));
  }
}

TEST(TensorParallel, InputGradientOfTheCrossEntropy) {
  const at::Tensor weight = random_tensor({11, 6}, 2);
  const TokenBatch batch = batch_of(2);
  const parallel::Communicator& tp = tensor_grid().comm(Axis::tensor);
  const parallel::Block block = parallel::block_of(11, tp.size(), tp.rank());
  const parallel::Communicator alone;
  const auto loss = [&](const at::Tensor& x, const at::Tensor& w, std::int64_t first,
                        const parallel::Communicator& comm) {
    return vocab_parallel_cross_entropy(x, {w}, batch.labels_BS, first, comm, {4}).sum;
  };
  const std::int64_t part = batch.tokens_BS.size(1) / tp.size();
  const at::Tensor h = random_tensor({2, batch.tokens_BS.size(1), 6}, 1).requires_grad_();
  const at::Tensor h_part = h.detach().narrow(1, part * tp.rank(), part).clone().requires_grad_();
  loss(h, weight, 0, alone).backward();
  loss(h_part, weight.narrow(0, block.first, block.count), block.first, tp).backward();
  expect_close(h_part.grad(), h.grad().narrow(1, part * tp.rank(), part), 1e-12, "dh");
}

TEST(TensorParallel, GatheredLogitsAreThePlainProduct) {
  for (const std::int64_t vocab : {11, 9, 8}) {
    const at::Tensor weight = random_tensor({vocab, 6}, 2), h = random_tensor({3, 6}, 1);
    const parallel::Communicator& tp = tensor_grid().comm(Axis::tensor);
    const parallel::Block block = parallel::block_of(vocab, tp.size(), tp.rank());
    expect_close(gather_logits(h, weight.narrow(0, block.first, block.count), vocab, tp),
                 at::mm(h, weight.t()), 1e-14, "logits");
  }
}

}  // namespace
}  // namespace athanor::nn
