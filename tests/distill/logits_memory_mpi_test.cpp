// No rank holds more than [chunk, vocab / tp] of logits: peak memory of the teacher's encoding and of the
// student's loss for growing numbers of tokens and vocabularies.
//
// Peak memory as a function of tokens N and this rank's vocabulary v is a + b N + c v + d N v. The mixed
// difference over two N and two v leaves d, which is the number of matrices [N, v] that exist at one time; c
// is the number of rows of logits (a chunk's) and of gradients of the head.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "distill/signals.hpp"
#include "nn/vocab_parallel.hpp"
#include "support/mpi_test.hpp"
#include "support/peak_memory.hpp"

namespace athanor::distill {
namespace {

using tests::world;

constexpr std::int64_t width = 8;
constexpr std::int64_t chunk = 32;
constexpr std::int64_t few_tokens = 192, many_tokens = 768;  // divisible by up to 4 ranks
constexpr std::int64_t small_vocab = 1024, large_vocab = 2048;
constexpr double float_bytes = 4.0;

std::int64_t slice_of(std::int64_t vocab) {
  return parallel::block_of(vocab, world().size(), world().rank()).count;
}

at::Tensor states(std::int64_t tokens) {
  return at::randn({1, tokens / world().size(), width}).set_requires_grad(true);
}

at::Tensor head(std::int64_t vocab) {
  return at::randn({slice_of(vocab), width}).set_requires_grad(true);
}

// Peak bytes for tokens and vocabulary.
using Peak = std::function<std::int64_t(std::int64_t tokens, std::int64_t vocab)>;

// What grows with tokens, with vocabulary, and with their product.
struct Growth {
  double per_token = 0.0;  // bytes, at the small vocabulary
  double rows = 0.0;       // f32 numbers for each vocabulary entry, at few tokens
  double matrices = 0.0;   // f32 numbers for each token and vocabulary entry
};

Growth growth_of(const Peak& peak) {
  at::manual_seed(1);
  const auto tokens = static_cast<double>(many_tokens - few_tokens);
  const auto entries = static_cast<double>(slice_of(large_vocab) - slice_of(small_vocab));
  const auto base = static_cast<double>(peak(few_tokens, small_vocab));
  const double by_tokens = static_cast<double>(peak(many_tokens, small_vocab)) - base;
  const double by_entries = static_cast<double>(peak(few_tokens, large_vocab)) - base;
  const double by_both = static_cast<double>(peak(many_tokens, large_vocab)) - base;
  return {by_tokens / tokens, by_entries / (entries * float_bytes),
          (by_both - by_tokens - by_entries) / (tokens * entries * float_bytes)};
}

// At most so many rows of logits beside the gradient of the head's weight, [v, D].
void expect_rows(const Growth& growth, std::int64_t rows) {
  EXPECT_GT(growth.rows, 0.9 * (chunk + width));  // it does measure
  EXPECT_LE(growth.rows, static_cast<double>(rows + width) + 0.01);
}

// At most twice the payload (its parts, and all of it), and some states and numbers.
void expect_per_token(const Growth& growth, std::int64_t payload_bytes) {
  EXPECT_LE(growth.per_token, static_cast<double>(2 * payload_bytes + 12 * width));
}

TEST(LogitsMemory, TheMeasureSeesAMatrixOfAllTokens) {
  const Growth growth = growth_of([](std::int64_t tokens, std::int64_t vocab) {
    const at::Tensor h = at::randn({tokens, width});
    const at::Tensor w = at::randn({slice_of(vocab), width});
    return tests::peak_bytes_of([&] { at::mm(h, w.t()); });
  });
  EXPECT_NEAR(growth.matrices, 1.0, 0.01);
  EXPECT_GE(growth.rows, static_cast<double>(few_tokens));
}

constexpr std::int64_t kept = 8;  // ids, draws

// As the teacher does: its own loss, and the signal while the logits are there.
std::int64_t teacher_peak(PayloadKind kind, std::int64_t tokens, std::int64_t vocab) {
  const at::Tensor h_BsD = states(tokens);
  const nn::Weight weight{head(vocab)};
  const at::Tensor labels_BS = at::arange(tokens, at::kLong).remainder(vocab).unsqueeze(0);
  const std::int64_t first = tests::first_id(vocab, world());
  return tests::peak_bytes_of([&] {
    std::vector<TeacherSignal> chunks;
    nn::CrossEntropyOptions options{.chunk_tokens = chunk};
    options.observe_logits = [&](at::Tensor& logits_Cv, std::int64_t first_token) {
      const std::int64_t rows = logits_Cv.size(0);
      const TokenPlaces places{at::zeros({rows}, at::kLong), at::arange(first_token, first_token + rows)};
      if (kind == PayloadKind::full) {
        chunks.push_back({{1.0}, FullSignal{logits_Cv.clone()}});
      } else if (kind == PayloadKind::topk) {
        chunks.push_back({{1.0}, encode_topk(logits_Cv, first, kept, {1.0}, world())});
      } else if (kind == PayloadKind::sampled) {
        chunks.push_back({{1.0}, encode_sampled(logits_Cv, first, kept, {1.0}, places, 1, world())});
      }
    };
    const nn::CrossEntropy loss =
        nn::vocab_parallel_cross_entropy(h_BsD, weight, labels_BS, first, world(), options);
    const TeacherSignal signal = chunks.empty() ? TeacherSignal{} : concatenate(chunks);
    loss.sum.backward();
  });
}

std::int64_t student_peak(PayloadKind kind, const KdOptions& kd, std::int64_t tokens, std::int64_t vocab) {
  const at::Tensor h_BsD = states(tokens);
  const nn::Weight weight{head(vocab)};
  const std::int64_t first = tests::first_id(vocab, world());
  TeacherSignal signal;
  if (kind == PayloadKind::hidden) {
    signal.payload = HiddenSignal{at::randn({tokens, width}), head(vocab).detach()};
  } else {
    signal = tests::signal_of(kind, at::randn({tokens, vocab}), {1.0}, world());
  }
  TokenTerms terms;
  terms.labels_N = at::arange(tokens, at::kLong).remainder(vocab);
  terms.ce_weight_N = at::ones({tokens});
  terms.kd_weight_N = at::ones({tokens});
  return tests::peak_bytes_of([&] {
    const HeadLoss loss =
        distill_head_loss(h_BsD, weight, first, terms, signal, world(), {.kd = kd, .chunk_tokens = chunk});
    loss.objective.backward();
  });
}

TEST(LogitsMemory, OfATeacherIsPayloadAndChunk) {
  for (const PayloadKind kind :
       {PayloadKind::hidden, PayloadKind::full, PayloadKind::topk, PayloadKind::sampled}) {
    SCOPED_TRACE(std::string(name_of(kind)));
    const Growth growth =
        growth_of([&](std::int64_t tokens, std::int64_t vocab) { return teacher_peak(kind, tokens, vocab); });
    if (kind == PayloadKind::full) {  // the payload is [N, v]: in chunks, and joined
      EXPECT_LE(growth.matrices, 2.01);
      expect_rows(growth, 2 * few_tokens + chunk);
      continue;
    }
    EXPECT_LE(growth.matrices, 0.01);
    expect_rows(growth, kind == PayloadKind::sampled ? 3 * chunk : chunk);  // draws add 64-bit masses
    expect_per_token(growth, kind == PayloadKind::hidden ? 0
                             : kind == PayloadKind::topk ? topk_bytes_per_token(kept, 1, 4)
                                                         : sampled_bytes_per_token(kept, 1, 4));
  }
}

TEST(LogitsMemory, OfAStudentIsAChunk) {
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
      SCOPED_TRACE(loss.name + " from " + std::string(name_of(kind)));
      const Growth growth = growth_of([&](std::int64_t tokens, std::int64_t vocab) {
        return student_peak(kind, loss.kd, tokens, vocab);
      });
      EXPECT_LE(growth.matrices, 0.01);
      // The teacher's logits of a chunk are made from `hidden`; those of `full` are read where they lie.
      expect_rows(growth, kind == PayloadKind::hidden ? 2 * chunk : chunk);
      expect_per_token(growth, 0);
    }
  }
}

}  // namespace
}  // namespace athanor::distill
