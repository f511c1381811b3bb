// Losses over a vocabulary that is split over ranks: finite differences on every rank, equality with one rank
// for any chunk, empty slices included.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "distill/distill_loss.hpp"
#include "parallel/collectives/collectives.hpp"
#include "signals.hpp"
#include "support/mpi_test.hpp"

namespace athanor::distill {
namespace {

using tests::expect_close;
using tests::random_tensor;

const parallel::Communicator alone;
const std::vector<double> temperatures = {1.0, 2.0};

std::string describe(const tests::LossCase& loss, PayloadKind kind) {
  return loss.name + " from " + std::string(name_of(kind));
}

TEST(SplitVocabulary, GradientsMatchFiniteDifferences) {
  // Every rank varies the same logical element: all slices are cut from one whole tensor on each rank.
  const std::int64_t tokens = 5, vocab = 11;
  const parallel::Communicator& tp = tests::world();
  const at::Tensor z = random_tensor({tokens, vocab}, 1), u = random_tensor({tokens, vocab}, 2) * 2;
  const TokenTerms terms = tests::some_terms(tokens, vocab, 2);
  const ChunkOptions options{.first_id = tests::first_id(vocab, tp)};
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
      const TeacherSignal signal = tests::signal_of(kind, u, temperatures, tp);
      const auto run = [&](bool wants_gradient) {
        at::Tensor logits = tests::columns_of(z, tp).clone();
        ChunkOptions chunk = options;
        chunk.wants_gradient = wants_gradient;
        const TokenLosses losses = distill_chunk(logits, terms, signal, loss.kd, tp, chunk);
        return std::make_pair(tests::weighted_sum(losses, terms), logits);
      };
      at::Tensor gradient = at::zeros_like(z);
      const parallel::Block block = parallel::block_of(vocab, tp.size(), tp.rank());
      gradient.narrow(1, block.first, block.count).copy_(run(true).second);
      parallel::all_reduce_(gradient, parallel::ReduceOp::sum, tp, parallel::Traffic::other);
      EXPECT_TRUE(tests::gradients_match_values([&] { return run(false).first; }, {{z, gradient, "logits"}},
                                                {.max_elements = 0}))
          << describe(loss, kind);
    }
  }
}

TEST(SplitVocabulary, LossesAndGradientsAreThoseOfOneRank) {
  const std::int64_t tokens = 6;
  const parallel::Communicator& tp = tests::world();
  for (const std::int64_t vocab : {3, 5, 64}) {  // fewer columns than ranks: an empty slice
    const at::Tensor z = random_tensor({tokens, vocab}, 1) * 3, u = random_tensor({tokens, vocab}, 2) * 3;
    const TokenTerms terms = tests::some_terms(tokens, vocab, 2);
    for (const tests::LossCase& loss : tests::all_losses()) {
      for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
        at::Tensor whole = z.clone();
        const TokenLosses expected = distill_chunk(
            whole, terms, tests::signal_of(kind, u, temperatures, alone, 3), loss.kd, alone, {});
        at::Tensor own = tests::columns_of(z, tp).clone();
        const ChunkOptions options{.first_id = tests::first_id(vocab, tp)};
        const TokenLosses actual =
            distill_chunk(own, terms, tests::signal_of(kind, u, temperatures, tp, 3), loss.kd, tp, options);
        expect_close(actual.ce_N, expected.ce_N, 1e-12, describe(loss, kind) + " ce");
        expect_close(actual.kd_N, expected.kd_N, 1e-12, describe(loss, kind) + " kd");
        const at::Tensor columns = tests::columns_of(whole, tp);
        EXPECT_LE(columns.numel() == 0 ? 0.0 : (own - columns).abs().max().item<double>(), 1e-12)
            << describe(loss, kind);
      }
    }
  }
}

/// Objective and gradients of the student's head on a group of ranks, put together.
struct HeadResult {
  at::Tensor objective, ce, kd, dh, dweight;
};

HeadResult run_head(const at::Tensor& h_BSD, const at::Tensor& weight_VD, const TokenTerms& terms,
                    const TeacherSignal& signal, const KdOptions& kd, std::int64_t chunk,
                    const parallel::Communicator& tp) {
  const std::int64_t vocab = weight_VD.size(0);
  const parallel::Block block = parallel::block_of(vocab, tp.size(), tp.rank());
  const std::int64_t part = h_BSD.size(1) / tp.size();
  const at::Tensor h = h_BSD.narrow(1, part * tp.rank(), part).clone().requires_grad_();
  const at::Tensor weight = weight_VD.narrow(0, block.first, block.count).clone().requires_grad_();
  parallel::GradAccumulator sink;
  sink.attach(at::empty_like(weight.detach()));
  const HeadLoss loss = distill_head_loss(h, {weight, &sink}, block.first, terms, signal, tp, {kd, chunk});
  (loss.objective * 1.7).backward();
  sink.finish();
  HeadResult result{loss.objective.detach(), loss.tokens.ce_N, loss.tokens.kd_N, at::zeros_like(h_BSD),
                    at::zeros_like(weight_VD)};
  result.dh.narrow(1, part * tp.rank(), part).copy_(h.grad());
  result.dweight.narrow(0, block.first, block.count).copy_(sink.buffer());
  parallel::all_reduce_(result.dh, parallel::ReduceOp::sum, tp, parallel::Traffic::other);
  parallel::all_reduce_(result.dweight, parallel::ReduceOp::sum, tp, parallel::Traffic::other);
  return result;
}

TEST(DistillHead, AnyChunkAndSplitGiveOneRanksGradients) {
  const parallel::Communicator& tp = tests::world();
  const std::int64_t batch = 2, seq = 12, width = 6, vocab = 10, tokens = batch * seq;
  const at::Tensor h = random_tensor({batch, seq, width}, 1), weight = random_tensor({vocab, width}, 2);
  const at::Tensor teacher = random_tensor({tokens, vocab}, 3) * 2;
  const TokenTerms terms = tests::some_terms(tokens, vocab, 2);
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
      const HeadResult expected = run_head(
          h, weight, terms, tests::signal_of(kind, teacher, temperatures, alone), loss.kd, tokens, alone);
      for (const std::int64_t chunk : {5, 100}) {
        const HeadResult actual =
            run_head(h, weight, terms, tests::signal_of(kind, teacher, temperatures, tp), loss.kd, chunk, tp);
        const std::string what = describe(loss, kind);
        expect_close(actual.objective, expected.objective, 1e-12, what + " objective");
        expect_close(actual.ce, expected.ce, 1e-12, what + " ce");
        expect_close(actual.kd, expected.kd, 1e-12, what + " kd");
        expect_close(actual.dh, expected.dh, 1e-11, what + " dh");
        expect_close(actual.dweight, expected.dweight, 1e-11, what + " dweight");
      }
    }
  }
}

}  // namespace
}  // namespace athanor::distill
