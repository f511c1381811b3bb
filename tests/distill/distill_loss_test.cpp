// Losses over the vocabulary on one rank: plain formulae, identities, masks, padding, temperatures, types.
#include "distill/distill_loss.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/error.hpp"
#include "parallel/parameter_map.hpp"
#include "signals.hpp"

namespace athanor::distill {
namespace {

using tests::expect_close;
using tests::random_tensor;

const parallel::Communicator alone;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// The loss of each token written out with ATen, differentiable.
at::Tensor plain_loss(const at::Tensor& z, const at::Tensor& u, double t, const KdOptions& kd) {
  const at::Tensor lq = at::log_softmax(z / t, 1), lp = at::log_softmax(u / t, 1);
  const at::Tensor p = lp.exp(), q = lq.exp();
  const auto divergence = [](const at::Tensor& a, const at::Tensor& b) {
    return (a * (a.log() - b.log())).sum(1);
  };
  switch (kd.loss) {
    case KdLoss::forward_kl:
      return t * t * divergence(p, q);
    case KdLoss::reverse_kl:
      return t * t * divergence(q, p);
    case KdLoss::skew_kl:
      return t * t * divergence(p, kd.skew * p + (1 - kd.skew) * q);
    case KdLoss::skew_reverse_kl:
      return t * t * divergence(q, (1 - kd.skew) * p + kd.skew * q);
    case KdLoss::jsd: {
      const at::Tensor m = kd.beta * p + (1 - kd.beta) * q;
      return t * t * (kd.beta * divergence(p, m) + (1 - kd.beta) * divergence(q, m)) /
             (kd.beta * (1 - kd.beta));
    }
    case KdLoss::logit_mse:
      return t * t * (u / t - z / t).square().mean(1);
  }
  return {};
}

Divergence chunk_divergence(const at::Tensor& z, const at::Tensor& u, double t, const KdOptions& kd) {
  at::Tensor gradient = z.clone();
  TokenTerms terms;
  terms.labels_N = at::zeros({z.size(0)}, at::kLong);
  terms.kd_weight_N = at::ones({z.size(0)}, z.options().dtype(parallel::accumulation_type(z.scalar_type())));
  const at::Tensor value = distill_chunk(gradient, terms, {{t}, FullSignal{u}}, kd, alone, {}).kd_N;
  return {value, gradient};
}

TEST(DistillLoss, DenseLossesAreTheWrittenOutOnesWithTSquared) {
  const at::Tensor u = random_tensor({5, 37}, 2) * 3;
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const double t : {1.0, 2.5}) {
      const at::Tensor z = (random_tensor({5, 37}, 1) * 2).requires_grad_();
      const at::Tensor expected = plain_loss(z, u, t, loss.kd);
      expected.sum().backward();
      const Divergence actual = chunk_divergence(z.detach(), u, t, loss.kd);
      expect_close(actual.value_C, expected, 1e-12, loss.name + " value");
      expect_close(actual.gradient_Cv, z.grad(), 1e-11, loss.name + " gradient");
    }
  }
}

TEST(DistillLoss, EveryElementTypeFollowsTheFormulae) {
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const at::Tensor z = (random_tensor({6, 301}, 1) * 2).to(type), u = random_tensor({6, 301}, 2) * 3;
      const at::Tensor z64 = z.to(at::kDouble).requires_grad_();
      const at::Tensor expected = plain_loss(z64, u.to(at::kFloat).to(at::kDouble), 1.5, loss.kd);
      expected.sum().backward();
      const Divergence actual = chunk_divergence(z, u, 1.5, loss.kd);
      EXPECT_EQ(actual.value_C.scalar_type(), at::kFloat);
      expect_close(actual.value_C, expected, 3e-6, loss.name + " value");
      expect_close(actual.gradient_Cv, z64.grad(),
                   type == at::kFloat  ? 5e-6
                   : type == at::kHalf ? 1e-3
                                       : 8e-3,
                   loss.name + " gradient");
    }
  }
}

TEST(DistillLoss, FreeFunctionsNameTheirDirection) {
  const at::Tensor z = random_tensor({3, 9}, 1), u = random_tensor({3, 9}, 2);
  const auto same = [&](const Divergence& actual, const KdOptions& kd, double t) {
    const Divergence expected = chunk_divergence(z, u, t, kd);
    expect_close(actual.value_C, expected.value_C, 0.0, std::string(name_of(kd.loss)) + " value");
    expect_close(actual.gradient_Cv, expected.gradient_Cv, 0.0, std::string(name_of(kd.loss)) + " gradient");
  };
  same(forward_kl(z, u, 2.0, alone), {.loss = KdLoss::forward_kl}, 2.0);
  same(reverse_kl(z, u, 2.0, alone), {.loss = KdLoss::reverse_kl}, 2.0);
  same(skew_kl(z, u, 2.0, 0.3, alone), {.loss = KdLoss::skew_kl, .skew = 0.3}, 2.0);
  same(skew_reverse_kl(z, u, 2.0, 0.3, alone), {.loss = KdLoss::skew_reverse_kl, .skew = 0.3}, 2.0);
  same(jsd(z, u, 2.0, 0.3, alone), {.loss = KdLoss::jsd, .beta = 0.3}, 2.0);
  same(logit_mse(z, u, alone), {.loss = KdLoss::logit_mse}, 1.0);
}

// Contract 4: which identity holds for which loss and payload.
//   full, hidden   every loss: value and gradient 0
//   topk + tail    forward KL: value and gradient 0
//   sampled        forward KL: 0 in the mean over draws (codec_test.cpp)
TEST(GradientParity, TeacherEqualToStudentGivesZeroValueAndGradient) {
  const at::Tensor whole = random_tensor({7, 41}, 3) * 4;
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
      if (kind == PayloadKind::sampled) {
        continue;
      }
      for (const double t : {1.0, 3.0}) {
        const TeacherSignal signal = tests::signal_of(kind, whole, {t}, alone);
        at::Tensor gradient = whole.clone();
        TokenTerms terms;
        terms.labels_N = at::zeros({7}, at::kLong);
        terms.kd_weight_N = at::ones({7}, at::kDouble);
        const TokenLosses losses = distill_chunk(gradient, terms, signal, loss.kd, alone, {});
        const std::string what = loss.name + " from " + std::string(name_of(kind));
        EXPECT_LE(losses.kd_N.abs().max().item<double>(), 1e-12) << what;
        EXPECT_LE(gradient.abs().max().item<double>(), 1e-12) << what;
      }
    }
  }
}

TEST(DistillLoss, JsdIsContinuousAtBothEnds) {
  const at::Tensor z = random_tensor({4, 19}, 1), u = random_tensor({4, 19}, 2) * 2;
  const auto near = [](const Divergence& a, const Divergence& b, double tolerance) {
    expect_close(a.value_C, b.value_C, tolerance, "value");
    expect_close(a.gradient_Cv, b.gradient_Cv, tolerance, "gradient");
  };
  near(jsd(z, u, 2.0, 1e-8, alone), forward_kl(z, u, 2.0, alone), 1e-6);
  near(jsd(z, u, 2.0, 1.0 - 1e-8, alone), reverse_kl(z, u, 2.0, alone), 1e-6);
  near(jsd(z, u, 2.0, 0.0, alone), forward_kl(z, u, 2.0, alone), 0.0);
  near(jsd(z, u, 2.0, 1.0, alone), reverse_kl(z, u, 2.0, alone), 0.0);
  const at::Tensor z32 = z.to(at::kFloat), u32 = u.to(at::kFloat);
  near(jsd(z32, u32, 2.0, 1e-5, alone), forward_kl(z, u, 2.0, alone), 1e-4);
  near(skew_kl(z, u, 2.0, 0.0, alone), forward_kl(z, u, 2.0, alone), 0.0);
  near(skew_reverse_kl(z, u, 2.0, 0.0, alone), reverse_kl(z, u, 2.0, alone), 0.0);
}

TEST(DistillLoss, LogitErrorDoesNotDependOnTheTemperature) {
  const at::Tensor z = random_tensor({4, 19}, 1), u = random_tensor({4, 19}, 2);
  const Divergence one = chunk_divergence(z, u, 1.0, {.loss = KdLoss::logit_mse});
  const Divergence four = chunk_divergence(z, u, 4.0, {.loss = KdLoss::logit_mse});
  expect_close(four.value_C, one.value_C, 0.0, "value");
  expect_close(four.gradient_Cv, one.gradient_Cv, 0.0, "gradient");
}

TEST(DistillLoss, PaddedColumnsChangeNothing) {
  const std::int64_t tokens = 6, vocab = 23, padding = 5;
  const auto padded = [&](const at::Tensor& x) { return at::constant_pad_nd(x, {0, padding}, -infinity); };
  const at::Tensor z = random_tensor({tokens, vocab}, 1), u = random_tensor({tokens, vocab}, 2);
  const TokenTerms terms = tests::some_terms(tokens, vocab, 2);
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
      if (kind == PayloadKind::hidden) {
        continue;  // a product of finite numbers has no such column
      }
      at::Tensor plain = z.clone(), wide = padded(z);
      const TokenLosses expected =
          distill_chunk(plain, terms, tests::signal_of(kind, u, {1.0, 2.0}, alone), loss.kd, alone, {});
      const TokenLosses actual = distill_chunk(
          wide, terms, tests::signal_of(kind, padded(u), {1.0, 2.0}, alone), loss.kd, alone, {});
      const std::string what = loss.name + " from " + std::string(name_of(kind));
      expect_close(actual.kd_N, expected.kd_N, 1e-12, what);
      expect_close(actual.ce_N, expected.ce_N, 1e-12, what);
      expect_close(wide.narrow(1, 0, vocab), plain, 1e-12, what + " gradient");
      EXPECT_EQ(wide.narrow(1, vocab, padding).abs().max().item<double>(), 0.0) << what;
    }
  }
}

TEST(DistillLoss, TokensWithoutLabelOrTeacherAreNotRead) {
  const std::int64_t tokens = 6, vocab = 23;
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
      if (kind == PayloadKind::hidden) {
        continue;  // its rows mix states in a product
      }
      const at::Tensor z = random_tensor({tokens, vocab}, 1), u = random_tensor({tokens, vocab}, 2);
      const TokenTerms terms = tests::some_terms(tokens, vocab, 2);
      const TeacherSignal signal = tests::signal_of(kind, u, {1.0, 2.0}, alone);
      TeacherSignal broken = signal;
      if (auto* full = std::get_if<FullSignal>(&broken.payload)) {
        full->logits_Nv = full->logits_Nv.clone();
        full->logits_Nv[2].fill_(std::nan(""));
      } else if (auto* topk = std::get_if<TopKSignal>(&broken.payload)) {
        topk->logits_NK[2].fill_(std::nan(""));
        topk->log_tail_NJ[2].fill_(std::nan(""));
      } else {
        std::get<SampledSignal>(broken.payload).entropy_NJ[2].fill_(std::nan(""));
      }
      at::Tensor expected_gradient = z.clone(), gradient = z.clone();
      gradient[1].fill_(std::nan(""));  // no label: nothing applies
      const TokenLosses expected = distill_chunk(expected_gradient, terms, signal, loss.kd, alone, {});
      const TokenLosses actual = distill_chunk(gradient, terms, broken, loss.kd, alone, {});
      expect_close(actual.kd_N, expected.kd_N, 0.0, loss.name);
      expect_close(actual.ce_N, expected.ce_N, 0.0, loss.name);
      expect_close(gradient, expected_gradient, 0.0, loss.name);
      EXPECT_EQ(actual.kd_N[2].item<double>(), 0.0);
      EXPECT_EQ(gradient[1].abs().max().item<double>(), 0.0);
    }
  }
}

TEST(DistillLoss, NoSignalIsCrossEntropy) {
  const at::Tensor z = random_tensor({6, 23}, 1);
  TokenTerms terms = tests::some_terms(6, 23, 1);
  at::Tensor gradient = z.clone();
  const TokenLosses losses = distill_chunk(gradient, terms, {}, {}, alone, {});
  const at::Tensor leaf = z.clone().requires_grad_();
  const at::Tensor expected = at::cross_entropy_loss(leaf, terms.labels_N, {}, at::Reduction::None, -100);
  (expected * terms.ce_weight_N).sum().backward();
  expect_close(losses.ce_N, expected, 1e-13, "ce");
  expect_close(gradient, leaf.grad(), 1e-13, "gradient");
  EXPECT_EQ(losses.kd_N.abs().max().item<double>(), 0.0);
}

TEST(DistillLoss, AnEmptyChunkIsOrdinary) {
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : tests::payloads_of(loss.kd)) {
      at::Tensor gradient = at::empty({0, 23}, at::kDouble);
      const TokenTerms terms = tests::some_terms(0, 23, 1);
      const TeacherSignal signal = tests::signal_of(kind, gradient, {1.0}, alone);
      EXPECT_EQ(distill_chunk(gradient, terms, signal, loss.kd, alone, {}).kd_N.numel(), 0);
    }
  }
}

TEST(DistillHead, GradientsMatchFiniteDifferences) {
  const at::Tensor teacher = random_tensor({6, 7}, 3);
  const TokenTerms terms = tests::some_terms(6, 7, 2);
  for (const PayloadKind kind :
       {PayloadKind::full, PayloadKind::hidden, PayloadKind::topk, PayloadKind::sampled, PayloadKind::none}) {
    const TeacherSignal signal = tests::signal_of(kind, teacher, {1.0, 2.0}, alone);
    EXPECT_TRUE(tests::gradients_match(
        [&](const std::vector<at::Tensor>& in) {
          return distill_head_loss(in[0], {in[1]}, 0, terms, signal, alone, {{}, 4}).objective * 0.3;
        },
        {random_tensor({2, 3, 5}, 1), random_tensor({7, 5}, 2)}))
        << name_of(kind);
  }
}

TEST(TopK, TailKeepsTheDivergenceBetweenZeroAndTheFullOne) {
  const at::Tensor u = random_tensor({40, 60}, 2) * 3, z = random_tensor({40, 60}, 1) * 3;
  for (const double t : {1.0, 2.0}) {
    const at::Tensor full = forward_kl(z, u, t, alone).value_C;
    at::Tensor previous = at::zeros_like(full);
    for (const std::int64_t k : {1, 4, 16, 59, 60}) {
      const at::Tensor coarse =
          payload_kl(z, 0, tests::signal_of(PayloadKind::topk, u, {t}, alone, k), t, alone).value_C;
      EXPECT_TRUE(coarse.ge(previous - 1e-12).all().item<bool>()) << "a finer bucket sees less";
      EXPECT_TRUE(coarse.le(full + 1e-12).all().item<bool>());
      previous = coarse;
    }
    expect_close(previous, full, 1e-12, "all ids");
  }
}

TEST(TopK, AVanishingStudentTailKeepsItsGradient) {
  // The student gives the outside a probability of e^-600, far below what 1 - Q can tell from 0.
  at::Tensor z = at::zeros({1, 6}, at::kDouble), u = at::zeros({1, 6}, at::kDouble);
  z.narrow(1, 2, 4).fill_(-600.0);
  u.narrow(1, 0, 2).fill_(2.0);
  const Divergence kl = payload_kl(z, 0, tests::signal_of(PayloadKind::topk, u, {1.0}, alone, 2), 1.0, alone);
  const double tail = 4.0 / (4.0 + 2.0 * std::exp(2.0));
  EXPECT_NEAR(kl.gradient_Cv.narrow(1, 2, 4).sum().item<double>(), -tail, 1e-12);
  EXPECT_GT(kl.value_C.item<double>(), 100.0);
}

TEST(KdOptions, LossesThatAPayloadDoesNotDetermineAreRefused) {
  for (const tests::LossCase& loss : tests::all_losses()) {
    for (const PayloadKind kind : {PayloadKind::topk, PayloadKind::sampled}) {
      if (loss.kd.loss == KdLoss::forward_kl) {
        EXPECT_NO_THROW(validate(loss.kd, kind));
      } else {
        EXPECT_THROW(validate(loss.kd, kind), base::ConfigError) << loss.name;
      }
    }
    EXPECT_NO_THROW(validate(loss.kd, PayloadKind::hidden));
  }
  EXPECT_NO_THROW(validate({.loss = KdLoss::jsd, .beta = 0.0}, PayloadKind::topk));  // is the forward KL
  EXPECT_THROW(validate({.loss = KdLoss::skew_kl, .skew = 1.0}, PayloadKind::full), base::ConfigError);
  EXPECT_THROW(validate({.loss = KdLoss::jsd, .beta = 1.5}, PayloadKind::full), base::ConfigError);
}

TEST(TeacherSignalTest, ATemperatureThatIsNotServedIsRefused) {
  EXPECT_EQ(temperature_index({1.0, 2.0}, 2.0), 1);
  EXPECT_THROW(temperature_index({1.0, 2.0}, 3.0), base::ConfigError);
}

}  // namespace
}  // namespace athanor::distill
