// Codecs over a split vocabulary: the same payload on every layout, ties, bias of sampling, bytes.
#include "distill/codec.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "distill/signal_gap.hpp"
#include "signals.hpp"
#include "support/mpi_test.hpp"

namespace athanor::distill {
namespace {

using tests::expect_close;
using tests::random_tensor;

const parallel::Communicator alone;

/// Logits with many equal ones.
at::Tensor tied_logits(std::int64_t tokens, std::int64_t vocab) {
  return (random_tensor({tokens, vocab}, 4) * 2).round();
}

TEST(TopKCodec, KeepsTheLargestByValueThenIdOnEverySplit) {
  const parallel::Communicator& tp = tests::world();
  for (const std::int64_t vocab : {3, 17, 40}) {
    const at::Tensor logits = tied_logits(8, vocab);
    for (const std::int64_t top_k : {1, 3, 16}) {
      const TopKSignal own =
          encode_topk(tests::columns_of(logits, tp), tests::first_id(vocab, tp), top_k, {1.0, 2.0}, tp);
      const TopKSignal one = encode_topk(logits, 0, top_k, {1.0, 2.0}, alone);
      EXPECT_TRUE(at::equal(own.ids_NK, one.ids_NK));
      EXPECT_TRUE(at::equal(own.logits_NK, one.logits_NK));
      expect_close(own.lse_NJ, one.lse_NJ, 1e-13, "lse");
      expect_close(own.lse_1_N, one.lse_1_N, 1e-13, "lse 1");
      EXPECT_TRUE(at::allclose(own.log_tail_NJ, one.log_tail_NJ, 1e-10, 1e-12));
      // A stable sort by value leaves equal ones in the order of their ids.
      const auto [values, order] = at::sort(logits, /*stable=*/true, 1, /*descending=*/true);
      const std::int64_t kept = std::min(top_k, vocab);
      EXPECT_TRUE(at::equal(one.ids_NK.narrow(1, 0, kept), order.narrow(1, 0, kept).to(at::kInt)));
      EXPECT_TRUE(one.ids_NK.narrow(1, kept, top_k - kept).eq(-1).all().item<bool>());
    }
  }
}

TEST(TopKCodec, TailsAreThoseOfTheLogitsOutside) {
  const at::Tensor logits = random_tensor({6, 30}, 1) * 8;
  const std::vector<double> temperatures = {1.0, 2.5};
  const TopKSignal signal = encode_topk(logits, 0, 20, temperatures, alone);
  const at::Tensor mask = at::zeros_like(logits, at::kBool).scatter(1, signal.ids_NK.to(at::kLong), true);
  const at::Tensor outside = logits.masked_fill(mask, -std::numeric_limits<double>::infinity());
  for (std::int64_t j = 0; j < 2; ++j) {
    const double t = temperatures[static_cast<std::size_t>(j)];
    const at::Tensor lse = at::logsumexp(logits / t, {1});
    expect_close(signal.lse_NJ.select(1, j), lse, 1e-13, "lse");
    expect_close(signal.log_tail_NJ.select(1, j), at::logsumexp(outside / t, {1}) - lse, 1e-12, "log tail");
  }
  // f32: a tail far below the rounding of 1 - P is there in full relative precision.
  const TopKSignal f32 = encode_topk(logits.to(at::kFloat), 0, 20, temperatures, alone);
  EXPECT_EQ(f32.log_tail_NJ.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(f32.log_tail_NJ.to(at::kDouble), signal.log_tail_NJ, 0.0, 1e-4));
  EXPECT_LT(signal.log_tail_NJ.min().item<double>(), -12.0) << "the case must be one that 1 - P would lose";
}

TEST(SampledCodec, DrawsTheSameIdsOnEverySplitAndInEveryChunk) {
  const parallel::Communicator& tp = tests::world();
  const std::int64_t vocab = 41;
  const at::Tensor logits = random_tensor({10, vocab}, 1) * 2;
  const TokenPlaces places = tests::places_of(10);
  const SampledSignal one = encode_sampled(logits, 0, 30, {1.0, 2.0}, places, 7, alone);
  const SampledSignal own = encode_sampled(tests::columns_of(logits, tp), tests::first_id(vocab, tp), 30,
                                           {1.0, 2.0}, places, 7, tp);
  EXPECT_TRUE(at::equal(own.ids_NJM, one.ids_NJM));
  EXPECT_TRUE(at::equal(own.counts_NJM, one.counts_NJM));
  expect_close(own.entropy_NJ, one.entropy_NJ, 1e-12, "entropy");
  EXPECT_TRUE(one.counts_NJM.sum(2).eq(30).all().item<bool>());
  const TokenPlaces later{places.sample_ids_C.narrow(0, 4, 3), places.positions_C.narrow(0, 4, 3)};
  const SampledSignal part = encode_sampled(logits.narrow(0, 4, 3), 0, 30, {1.0, 2.0}, later, 7, alone);
  EXPECT_TRUE(at::equal(part.ids_NJM, one.ids_NJM.narrow(0, 4, 3)));
  const SampledSignal other = encode_sampled(logits, 0, 30, {1.0, 2.0}, tests::places_of(10, 4), 7, alone);
  EXPECT_FALSE(at::equal(other.ids_NJM, one.ids_NJM));
}

TEST(SampledCodec, EntropyIsThatOfTheTemperature) {
  const at::Tensor logits = random_tensor({10, 41}, 1) * 2;
  const SampledSignal signal = encode_sampled(logits, 0, 5, {1.0, 2.0}, tests::places_of(10), 7, alone);
  for (std::int64_t j = 0; j < 2; ++j) {
    const at::Tensor log_p = at::log_softmax(logits / (j == 0 ? 1.0 : 2.0), 1);
    expect_close(signal.entropy_NJ.select(1, j), -(log_p.exp() * log_p).sum(1), 1e-12, "entropy");
  }
}

// Contract 4 for sampled: counts, value and gradient are unbiased, within 4 standard errors of the mean over
// draws.
TEST(GradientParity, SampledIsUnbiasedOverDraws) {
  const std::int64_t vocab = 12, draws = 20000, samples = 10;
  const double t = 1.5;
  const at::Tensor teacher = random_tensor({1, vocab}, 1) * 2;
  for (const bool equal : {true, false}) {
    const at::Tensor student = equal ? teacher : random_tensor({1, vocab}, 2) * 2;
    // One token at many positions: independent draws of the same distribution.
    const at::Tensor repeated = teacher.expand({draws, vocab}).contiguous();
    const TeacherSignal signal{{t},
                               encode_sampled(repeated, 0, samples, {t}, tests::places_of(draws), 11, alone)};
    const Divergence drawn = payload_kl(student.expand({draws, vocab}).contiguous(), 0, signal, t, alone);
    const Divergence full = forward_kl(student, teacher, t, alone);
    const auto expect_mean = [&](const at::Tensor& values, const at::Tensor& expected, const char* what) {
      const at::Tensor error = values.std(0, true) / std::sqrt(static_cast<double>(draws));
      const at::Tensor deviation = (values.mean(0) - expected).abs();
      EXPECT_TRUE(deviation.le(4 * error + 1e-9).all().item<bool>()) << what << ": " << deviation << error;
    };
    expect_mean(drawn.value_C.unsqueeze(1), full.value_C, "value");
    expect_mean(drawn.gradient_Cv, full.gradient_Cv.squeeze(0), "gradient");
  }
}

TEST(SampledCodec, PacksToItsFormulaAndBack) {
  const SampledSignal signal = encode_sampled(random_tensor({9, 41}, 1).to(at::kFloat), 0, 20, {1.0, 2.0},
                                              tests::places_of(9), 7, alone);
  const at::Tensor packed = pack_sampled(signal);
  EXPECT_EQ(packed.numel(), packed_sampled_bytes(9, signal.ids_NJM.ge(0).sum().item<std::int64_t>(), 2, 4));
  const SampledSignal back = unpack_sampled(packed, 9, 2, 20, at::kFloat);
  EXPECT_TRUE(at::equal(back.ids_NJM, signal.ids_NJM));
  EXPECT_TRUE(at::equal(back.counts_NJM, signal.counts_NJM));
  EXPECT_TRUE(at::equal(back.entropy_NJ, signal.entropy_NJ));
  EXPECT_THROW(unpack_sampled(packed.narrow(0, 0, packed.numel() - 1), 9, 2, 20, at::kFloat),
               base::DataError);
  EXPECT_THROW(unpack_sampled(packed, 8, 2, 20, at::kFloat), base::DataError);
}

std::int64_t bytes_of(const std::vector<at::Tensor>& tensors) {
  std::int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) {
    bytes += tensor.defined() ? tensor.numel() * tensor.element_size() : 0;
  }
  return bytes;
}

TEST(Codecs, BytesAreThoseOfTheTensors) {
  const std::int64_t tokens = 5;
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const std::int64_t size = type == at::kFloat ? 4 : 8;
    const at::Tensor logits = random_tensor({tokens, 41}, 1, type);
    const TopKSignal topk = encode_topk(logits, 0, 6, {1.0, 2.0, 3.0}, alone);
    EXPECT_EQ(bytes_of({topk.ids_NK, topk.logits_NK, topk.lse_1_N, topk.lse_NJ, topk.log_tail_NJ}),
              tokens * topk_bytes_per_token(6, 3, size));
    const SampledSignal sampled =
        encode_sampled(logits, 0, 9, {1.0, 2.0}, tests::places_of(tokens), 1, alone);
    EXPECT_EQ(bytes_of({sampled.ids_NJM, sampled.counts_NJM, sampled.entropy_NJ}),
              tokens * sampled_bytes_per_token(9, 2, size));
    EXPECT_EQ(bytes_of({logits}), tokens * full_bytes_per_token(41, size));
  }
  for (const std::int64_t width : {1, 128, 129, 300}) {
    for (const base::WireType wire : {base::WireType::full, base::WireType::bf16, base::WireType::fp8}) {
      const EncodedStates states =
          encode_states(random_tensor({tokens, width}, 1, at::kFloat), wire, base::Fp8Format::e4m3);
      EXPECT_EQ(bytes_of({states.data_ND, states.scale_NB}), tokens * state_bytes_per_token(width, wire, 4));
    }
  }
  EXPECT_EQ(attention_bytes_per_token(8, 4, 32, base::WireType::bf16, 4), 12 * 32 * 2);
  EXPECT_EQ(head_bytes(8192, 256, 2), 8192 * 256 * 2);
}

TEST(StateCodec, RoundsOnceWithinTheFormat) {
  const at::Tensor states = random_tensor({2, 3, 300}, 1, at::kFloat) * 100;
  const at::Tensor rows = states.view({6, 300});
  const auto error = [&](base::WireType wire, base::Fp8Format format) {
    const at::Tensor back = decode_states(encode_states(states, wire, format), format, at::kFloat);
    return ((back - rows).abs() / rows.abs().amax()).max().item<double>();
  };
  EXPECT_EQ(error(base::WireType::full, base::Fp8Format::e4m3), 0.0);
  EXPECT_LE(error(base::WireType::bf16, base::Fp8Format::e4m3), 1.0 / 256);
  EXPECT_LE(error(base::WireType::fp8, base::Fp8Format::e4m3), 1.0 / 16);
  EXPECT_LE(error(base::WireType::fp8, base::Fp8Format::e5m2), 1.0 / 8);
  EXPECT_GT(error(base::WireType::fp8, base::Fp8Format::e4m3), 0.0);
  EXPECT_THROW(encode_states(states.to(at::kDouble), base::WireType::fp8, base::Fp8Format::e4m3),
               base::InternalError);
}

TEST(StateCodec, BrokenAndEmptyBlocksAreTold) {
  at::Tensor states = random_tensor({3, 256}, 1, at::kFloat);
  states[0].zero_();
  states[1][200] = std::numeric_limits<float>::infinity();
  states[2][5] = std::nanf("");
  const EncodedStates encoded = encode_states(states, base::WireType::fp8, base::Fp8Format::e4m3);
  const at::Tensor back = decode_states(encoded, base::Fp8Format::e4m3, at::kFloat);
  EXPECT_EQ(back[0].abs().max().item<float>(), 0.0f);
  EXPECT_TRUE(back[1].narrow(0, 0, 128).isfinite().all().item<bool>());
  EXPECT_TRUE(back[1].narrow(0, 128, 128).isnan().all().item<bool>());
  EXPECT_TRUE(back[2].narrow(0, 0, 128).isnan().all().item<bool>());
  EXPECT_EQ(decode_states(encode_states(states.narrow(0, 0, 0), base::WireType::fp8, base::Fp8Format::e5m2),
                          base::Fp8Format::e5m2, at::kFloat)
                .numel(),
            0);
}

TEST(Codecs, ChunksPutTogetherAreTheWhole) {
  const at::Tensor logits = random_tensor({7, 20}, 1);
  for (const PayloadKind kind : {PayloadKind::full, PayloadKind::topk, PayloadKind::sampled}) {
    const TeacherSignal whole = tests::signal_of(kind, logits, {1.0, 2.0}, alone);
    const TeacherSignal again =
        concatenate({whole.narrow(0, 3), whole.narrow(3, 4).select(at::arange(4, at::kLong))});
    const at::Tensor student = random_tensor({7, 20}, 2);
    expect_close(payload_kl(student, 0, again, 2.0, alone).value_C,
                 payload_kl(student, 0, whole, 2.0, alone).value_C, 0.0, std::string(name_of(kind)));
  }
}

TEST(Codecs, RangesAreRefused) {
  EXPECT_THROW(validate({.kind = PayloadKind::topk, .top_k = 0}, 10), base::ConfigError);
  EXPECT_THROW(validate({.kind = PayloadKind::topk, .top_k = 11}, 10), base::ConfigError);
  EXPECT_THROW(validate({.kind = PayloadKind::sampled, .samples = 256}, 10), base::ConfigError);
  EXPECT_NO_THROW(validate({.kind = PayloadKind::hidden, .top_k = 11}, 10));
}

TEST(SignalGapTest, PositionsAreOfTheSampleAlone) {
  const at::Tensor samples = at::tensor({7, 8, 9, 7}, at::kLong);
  const at::Tensor drawn = measured_positions(samples, 40, 5, 3);
  EXPECT_TRUE(at::equal(drawn[0], drawn[3]));
  EXPECT_FALSE(at::equal(drawn[0], drawn[1]));
  EXPECT_TRUE(at::equal(measured_positions(samples.narrow(0, 1, 2), 40, 5, 3), drawn.narrow(0, 1, 2)));
  EXPECT_FALSE(at::equal(measured_positions(samples, 40, 5, 4), drawn));
  EXPECT_TRUE(drawn.diff(1, 1).gt(0).all().item<bool>());
  EXPECT_TRUE(drawn.ge(0).logical_and(drawn.lt(40)).all().item<bool>());
  EXPECT_TRUE(at::equal(measured_positions(samples, 6, 6, 3)[1], at::arange(6, at::kLong)));
  EXPECT_EQ(num_measured(100, 0.01), 1);
  EXPECT_EQ(num_measured(101, 0.01), 2);
  EXPECT_EQ(num_measured(3, 1e-9), 1);
}

TEST(SignalGapTest, MeasuresWhatAPayloadLosesOnTheSameTokensEverywhere) {
  const parallel::Communicator& tp = tests::world();
  const at::Tensor teacher = random_tensor({30, 25}, 1) * 2, student = random_tensor({30, 25}, 2);
  const at::Tensor rows =
      measured_positions(at::arange(3, at::kLong), 10, num_measured(10, 0.31), 3).flatten() +
      at::tensor({0, 10, 20}, at::kLong).repeat_interleave(4);
  const at::Tensor u = teacher.index_select(0, rows), z = student.index_select(0, rows);
  const std::int64_t first = tests::first_id(25, tp);
  const auto gap = [&](PayloadKind kind, std::int64_t k) {
    const TeacherSignal signal = tests::signal_of(kind, u, {2.0}, tp, k);
    return measure_gap(tests::columns_of(z, tp), tests::columns_of(u, tp), first, signal, 0, tp);
  };
  const SignalGap none = gap(PayloadKind::topk, 25), some = gap(PayloadKind::topk, 3);
  EXPECT_LE(none.difference, 1e-11);
  EXPECT_GT(some.difference, 1e-3);
  EXPECT_LT(some.payload_kl, some.full_kl);
  EXPECT_NEAR(some.difference, some.full_kl - some.payload_kl, 1e-11);
  EXPECT_EQ(some.tokens, rows.numel());
  SignalGap sum = none;
  sum += some;
  EXPECT_EQ(sum.tokens, 2 * rows.numel());
}

}  // namespace
}  // namespace athanor::distill
