// Attention losses on one rank: whole maps, finite differences, identities, any tile.
#include "distill/attention_loss.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "attention_fixture.hpp"

namespace athanor::distill {
namespace {

using tests::AttentionCase;
using tests::expect_close;

const parallel::Communicator alone;

std::vector<AttentionCase> all_cases() {
  std::vector<AttentionCase> cases;
  for (const AttentionLossKind kind : {AttentionLossKind::kl, AttentionLossKind::mse}) {
    AttentionCase same, different;
    same.kind = different.kind = kind;
    different.teacher_heads = 6;
    different.teacher_groups = 3;
    cases.push_back(same);
    cases.push_back(different);
  }
  return cases;
}

TEST(AttentionLoss, TilesGiveTheLossAndGradientsOfWholeMaps) {
  for (const AttentionCase& one : all_cases()) {
    for (const at::Tensor& documents : {at::Tensor(), one.documents()}) {
      const QueriesKeys plain = one.student(), teacher = one.teacher();
      plain.q_BSHC.requires_grad_();
      plain.k_BSGC.requires_grad_();
      const at::Tensor expected = tests::plain_attention_loss(one, plain, teacher, one.weights(), documents);
      expected.backward();
      for (const std::int64_t tile : {1, 3, 64}) {
        const QueriesKeys student = one.student();
        student.q_BSHC.requires_grad_();
        student.k_BSGC.requires_grad_();
        const AttentionLoss loss =
            attention_map_loss(student, teacher, one.weights(), documents, alone, one.options(tile));
        (loss.objective * 0.7).backward();
        expect_close(loss.objective, expected, 1e-12, "objective");
        expect_close(loss.sum, expected, 1e-12, "sum");
        expect_close(student.q_BSHC.grad(), 0.7 * plain.q_BSHC.grad(), 1e-11, "dq");
        expect_close(student.k_BSGC.grad(), 0.7 * plain.k_BSGC.grad(), 1e-11, "dk");
      }
    }
  }
}

TEST(AttentionLoss, GradientsMatchFiniteDifferences) {
  for (const AttentionCase& one : all_cases()) {
    const QueriesKeys student = one.student(), teacher = one.teacher();
    EXPECT_TRUE(tests::gradients_match(
        [&](const std::vector<at::Tensor>& in) {
          return attention_map_loss({in[0], in[1]}, teacher, one.weights(), one.documents(), alone,
                                    one.options(3))
              .objective;
        },
        {student.q_BSHC, student.k_BSGC}));
  }
}

TEST(AttentionGradientParity, EqualLayersGiveZeroValueAndGradient) {
  for (AttentionCase one : all_cases()) {
    one.teacher_heads = one.student_heads;
    const QueriesKeys student = one.student(), teacher = one.student();
    student.q_BSHC.requires_grad_();
    student.k_BSGC.requires_grad_();
    const AttentionLoss loss =
        attention_map_loss(student, teacher, one.weights(), one.documents(), alone, one.options(4));
    loss.objective.backward();
    EXPECT_LE(std::abs(loss.sum.item<double>()), 1e-12);
    EXPECT_LE(student.q_BSHC.grad().abs().max().item<double>(), 1e-12);
    EXPECT_LE(student.k_BSGC.grad().abs().max().item<double>(), 1e-12);
  }
}

TEST(AttentionGradientParity, RepeatedHeadsHaveTheSameMeanMap) {
  // Twice the heads with the same queries: another number of heads, the same mean.
  AttentionCase one;
  one.teacher_heads = 8;
  one.teacher_groups = 2;
  for (const AttentionLossKind kind : {AttentionLossKind::kl, AttentionLossKind::mse}) {
    one.kind = kind;
    const QueriesKeys student = one.student();
    const QueriesKeys teacher{student.q_BSHC.repeat_interleave(2, 2), student.k_BSGC};
    student.q_BSHC.requires_grad_();
    const AttentionLoss loss =
        attention_map_loss(student, teacher, one.weights(), one.documents(), alone, one.options(4));
    loss.objective.backward();
    EXPECT_LE(std::abs(loss.sum.item<double>()), 1e-12);
    EXPECT_LE(student.q_BSHC.grad().abs().max().item<double>(), 1e-12);
  }
}

TEST(AttentionLoss, CountsThePairsItIsDividedBy) {
  const at::Tensor weight = at::tensor({1.0, 1.0, 0.0, 1.0}, at::kDouble).view({1, 4});
  EXPECT_EQ(attention_pairs(weight, {}), 1 + 2 + 4);
  const at::Tensor documents = at::tensor({0, 1, 1, 1}, at::kLong).view({1, 4});
  EXPECT_EQ(attention_pairs(weight, documents), 1 + 1 + 3);
}

TEST(AttentionLoss, NoSequencesAndShortTypesAreOrdinary) {
  AttentionCase one;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto in_type = [&](const QueriesKeys& layer, std::int64_t sequences) {
      return QueriesKeys{layer.q_BSHC.narrow(0, 0, sequences).to(type),
                         layer.k_BSGC.narrow(0, 0, sequences).to(type)};
    };
    for (const std::int64_t sequences : {0, 2}) {
      const QueriesKeys student = in_type(one.student(), sequences),
                        teacher = in_type(one.teacher(), sequences);
      student.q_BSHC.requires_grad_();
      const AttentionLoss loss = attention_map_loss(student, teacher, one.weights().narrow(0, 0, sequences),
                                                    {}, alone, one.options(4));
      loss.objective.backward();
      EXPECT_EQ(loss.objective.scalar_type(), at::kFloat);
      EXPECT_EQ(student.q_BSHC.grad().scalar_type(), type);
    }
  }
}

}  // namespace
}  // namespace athanor::distill
