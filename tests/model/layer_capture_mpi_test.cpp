// States handed out by the layers of a tensor-parallel model against those of one rank: values, and gradients
// through them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "model/model_fixture.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/finite_difference.hpp"
#include "support/mpi_test.hpp"

namespace athanor::model {
namespace {

using parallel::Axis;
using tests::expect_close;
using tests::random_tensor;

/// One model with what its ranks hold of each state.
struct Side {
  Side(const TransformerConfig& config, const parallel::ProcessGrid& grid)
      : tp(&grid.comm(Axis::tensor)), model(config, parameters, grid) {
    for (const auto& parameter : parameters.all()) {
      parameter->grad.attach(at::empty_like(parameter->value.detach()));
    }
    batch = infer::make_token_batch(tests::synthetic_rows({37, 9, 3, 5, false}, 0, 3), tp->size());
    // More ranks than key/value heads: several hold the same one.
    const std::int64_t kv_heads = config.kv_heads;
    holders = std::max<std::int64_t>(tp->size() / kv_heads, 1);
    first_kv = tp->rank() * kv_heads / tp->size();
    num_kv = std::max<std::int64_t>(kv_heads / tp->size(), 1);
    num_q = config.heads / tp->size();
  }

  Transformer::Hidden run() {
    ForwardContext context;
    context.valid_labels = context.routed_tokens = 27;
    context.num_sequences = 3;
    context.capture = &capture;
    return model.blocks(model.embed(batch, context), batch, context);
  }

  /// This rank's part of a state of the whole model: positions, query heads, key heads.
  at::Tensor positions(const at::Tensor& whole_BSD) const {
    const std::int64_t part = batch.tokens_BS.size(1) / tp->size();
    const std::int64_t padding = batch.tokens_BS.size(1) - whole_BSD.size(1);
    return at::constant_pad_nd(whole_BSD, {0, 0, 0, padding}).narrow(1, part * tp->rank(), part);
  }
  at::Tensor queries(const at::Tensor& whole_BSHC) const {
    return padded(whole_BSHC).narrow(2, num_q * tp->rank(), num_q);
  }
  at::Tensor keys(const at::Tensor& whole_BSGC) const {
    return padded(whole_BSGC).narrow(2, first_kv, num_kv);
  }
  at::Tensor padded(const at::Tensor& whole_BSHC) const {
    return at::constant_pad_nd(whole_BSHC, {0, 0, 0, 0, 0, batch.tokens_BS.size(1) - whole_BSHC.size(1)});
  }

  /// Backward of a weighted sum of squares over all states; weights are 0 at padding.
  void backward() {
    run();
    at::Tensor sum = at::zeros({}, at::kDouble);
    const auto add = [&](const at::Tensor& state, const at::Tensor& weight, double factor) {
      sum = sum + (state * state * weight).sum() * factor;
    };
    add(capture.hidden_BsD[0], positions(random_tensor({3, 9, 16}, 1)), 1.0);
    add(capture.hidden_BsD[1], positions(random_tensor({3, 9, 16}, 2)), 1.0);
    add(capture.attention[0].q_BSHC, queries(random_tensor({3, 9, 4, 4}, 3)), 1.0);
    add(capture.attention[0].k_BSGC, keys(random_tensor({3, 9, 2, 4}, 4)),
        1.0 / static_cast<double>(holders));
    sum.backward();
    for (const auto& parameter : parameters.all()) {
      parameter->grad.finish();
    }
  }

  parallel::ParameterMap parameters{{3, at::kDouble, true}};
  const parallel::Communicator* tp;
  Transformer model;
  nn::TokenBatch batch;
  LayerCapture capture{{0, 1}, {1}, {}, {}};
  std::int64_t holders = 1, first_kv = 0, num_kv = 1, num_q = 1;
};

const parallel::ProcessGrid& tensor_grid() {
  static const parallel::ProcessGrid grid(
      parallel::ParallelDims::from_role_size(tests::world().size(), tests::world().size(), 1),
      tests::world());
  return grid;
}

/// The whole gradient from the parts of all ranks.
at::Tensor gathered_gradient(parallel::Parameter& parameter) {
  at::Tensor sum = at::zeros(parameter.shard.global_shape, at::kDouble);
  at::Tensor part = sum;
  for (std::size_t dim = 0; dim < parameter.shard.offset.size(); ++dim) {
    part = part.narrow(static_cast<std::int64_t>(dim), parameter.shard.offset[dim],
                       parameter.shard.local_shape[dim]);
  }
  part.copy_(parameter.grad.buffer());
  parallel::all_reduce_(sum, parallel::ReduceOp::sum, tests::world(), parallel::Traffic::other);
  return sum;
}

TEST(LayerCapture, IsThatOfOneRankUnderTensorParallelism) {
  for (const bool recompute : {false, true}) {
    TransformerConfig config = small_config();
    config.moe.balance = {};
    config.moe.z_weight = 0.0;
    config.recompute = recompute;
    const parallel::ProcessGrid one;
    Side sharded(config, tensor_grid()), whole(config, one);
    sharded.backward();
    whole.backward();
    const std::int64_t real = sharded.batch.real_seq;
    ASSERT_EQ(real, 9);
    for (std::size_t i = 0; i < 2; ++i) {
      const at::Tensor valid = sharded.positions(at::ones({3, 9, 16}, at::kDouble));
      expect_close(sharded.capture.hidden_BsD[i] * valid, sharded.positions(whole.capture.hidden_BsD[i]),
                   1e-11, "hidden");
    }
    const nn::QueriesKeys &part = sharded.capture.attention[0], &all = whole.capture.attention[0];
    expect_close(part.q_BSHC.narrow(1, 0, real), sharded.queries(all.q_BSHC).narrow(1, 0, real), 1e-11, "q");
    expect_close(part.k_BSGC.narrow(1, 0, real), sharded.keys(all.k_BSGC).narrow(1, 0, real), 1e-11, "k");
    for (const auto& parameter : sharded.parameters.all()) {
      const auto reference = whole.parameters.find(parameter->name);
      ASSERT_NE(reference, nullptr);
      expect_close(gathered_gradient(*parameter), reference->grad.buffer(), 1e-10, parameter->name);
    }
  }
}

TEST(Transformer, HeadWeightIsThisRanksVocabulary) {
  for (const bool tied : {false, true}) {
    TransformerConfig config = small_config();
    config.tie_embeddings = tied;
    const parallel::ProcessGrid one;
    Side sharded(config, tensor_grid()), whole(config, one);
    const parallel::Block rows = parallel::block_of(37, tests::world().size(), tests::world().rank());
    EXPECT_EQ(sharded.model.head_first_id(), rows.first);
    EXPECT_TRUE(at::equal(sharded.model.head_weight().tensor,
                          whole.model.head_weight().tensor.narrow(0, rows.first, rows.count)));

    const at::NoGradGuard no_grad;
    const auto logits_of = [](Side& side) {
      std::vector<at::Tensor> chunks;
      nn::CrossEntropyOptions options;
      options.chunk_tokens = 5;
      options.observe_logits = [&](at::Tensor& logits, std::int64_t) { chunks.push_back(logits.clone()); };
      side.model.head_loss(side.run().h_BsD, side.batch, options);
      return at::cat(chunks).view({3, side.batch.tokens_BS.size(1), -1}).narrow(1, 0, 9);
    };
    const at::Tensor expected = logits_of(whole).narrow(2, rows.first, rows.count);
    expect_close(logits_of(sharded), expected, 1e-11, "logits");
  }
}

}  // namespace
}  // namespace athanor::model
