// Hidden-state losses: finite differences of states and projections, plain formulae, identities, masks, layer
// maps.
#include "distill/hidden_loss.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "support/finite_difference.hpp"

namespace athanor::distill {
namespace {

using tests::expect_close;
using tests::random_tensor;

const std::vector<HiddenLossKind> all_kinds = {HiddenLossKind::mse, HiddenLossKind::relative,
                                               HiddenLossKind::cosine, HiddenLossKind::normalized};

at::Tensor plain_loss(const at::Tensor& s, const at::Tensor& t, HiddenLossKind kind) {
  const at::Tensor squared = (s - t).square().sum(-1);
  const at::Tensor s_unit = s / s.norm(2, -1, true), t_unit = t / t.norm(2, -1, true);
  switch (kind) {
    case HiddenLossKind::mse:
      return squared / static_cast<double>(s.size(-1));
    case HiddenLossKind::relative:
      return squared / (t.square().sum(-1) + 1e-8);
    case HiddenLossKind::cosine:
      return 1.0 - (s_unit * t_unit).sum(-1);
    case HiddenLossKind::normalized:
      return (s_unit - t_unit).square().sum(-1);
  }
  return {};
}

TEST(HiddenLoss, FollowsTheFormulae) {
  const at::Tensor s = random_tensor({2, 3, 5}, 1), t = random_tensor({2, 3, 5}, 2);
  for (const HiddenLossKind kind : all_kinds) {
    const HiddenLoss loss = hidden_state_loss(s, t, at::full({2, 3}, 0.5, at::kDouble), {}, {.kind = kind});
    const at::Tensor expected = plain_loss(s, t, kind);
    expect_close(loss.per_token_n, expected.flatten(), 1e-13, "per token");
    expect_close(loss.objective, 0.5 * expected.sum(), 1e-13, "objective");
  }
}

TEST(HiddenLoss, GradientsMatchFiniteDifferences) {
  const at::Tensor t = random_tensor({2, 3, 4}, 2), weight = random_tensor({2, 3}, 3).abs();
  for (const HiddenLossKind kind : all_kinds) {
    HiddenOptions options{.kind = kind};
    options.gradient_scale = 1.0;
    EXPECT_TRUE(tests::gradients_match(
        [&](const std::vector<at::Tensor>& in) {
          return hidden_state_loss(in[0], t, weight, {in[1]}, options).objective * 1.3;
        },
        {random_tensor({2, 3, 5}, 1), random_tensor({4, 5}, 4)}));
    EXPECT_TRUE(tests::gradients_match(
        [&](const std::vector<at::Tensor>& in) {
          return hidden_state_loss(in[0], t, weight, {}, options).objective;
        },
        {random_tensor({2, 3, 4}, 1)}));
  }
}

TEST(HiddenLoss, TheScaleIsThatOfTheStudentsGradientAlone) {
  const at::Tensor t = random_tensor({6, 4}, 2), weight = at::ones({6}, at::kDouble);
  const auto gradients = [&](double scale) {
    const at::Tensor s = random_tensor({6, 5}, 1).requires_grad_(),
                     p = random_tensor({4, 5}, 4).requires_grad_();
    HiddenOptions options;
    options.gradient_scale = scale;
    hidden_state_loss(s, t, weight, {p}, options).objective.backward();
    return std::make_pair(s.grad(), p.grad());
  };
  const auto [ds, dp] = gradients(1.0);
  const auto [ds_tenth, dp_tenth] = gradients(0.1);
  expect_close(ds_tenth, ds * 0.1, 1e-14, "student");
  expect_close(dp_tenth, dp, 0.0, "projection");
}

TEST(HiddenGradientParity, EqualStatesGiveZeroValueAndGradient) {
  const at::Tensor t = random_tensor({7, 9}, 2) * 5;
  for (const HiddenLossKind kind : all_kinds) {
    const at::Tensor s = t.clone().requires_grad_();
    const at::Tensor identity = at::eye(9, at::kDouble);
    const HiddenLoss loss = hidden_state_loss(s, t, at::ones({7}, at::kDouble), {identity}, {.kind = kind});
    loss.objective.backward();
    EXPECT_LE(loss.per_token_n.abs().max().item<double>(), 1e-12);
    EXPECT_LE(s.grad().abs().max().item<double>(), 1e-12);
  }
}

TEST(HiddenLoss, TokensWithoutWeightMayHoldAnything) {
  const at::Tensor t = random_tensor({5, 4}, 2), weight = at::tensor({1.0, 0.0, 0.5, 0.0, 2.0}, at::kDouble);
  for (const HiddenLossKind kind : all_kinds) {
    const auto run = [&](double filler) {
      at::Tensor s = random_tensor({5, 4}, 1), other = t.clone();
      s[1].fill_(filler);
      other[3].fill_(filler);
      s.requires_grad_();
      const HiddenLoss loss = hidden_state_loss(s, other, weight, {}, {.kind = kind});
      loss.objective.backward();
      return std::make_pair(loss, s.grad());
    };
    const auto [zero_loss, zero_grad] = run(0.0);
    const auto [loss, grad] = run(std::nan(""));
    expect_close(loss.objective, zero_loss.objective, 0.0, "objective");
    expect_close(loss.per_token_n, zero_loss.per_token_n, 0.0, "per token");
    expect_close(grad, zero_grad, 0.0, "gradient");
  }
}

TEST(HiddenLoss, StatesOfLengthZeroAreOrdinary) {
  for (const HiddenLossKind kind : all_kinds) {
    const at::Tensor s = at::zeros({3, 4}, at::kDouble).requires_grad_();
    const HiddenLoss loss =
        hidden_state_loss(s, at::zeros({3, 4}, at::kDouble), at::ones({3}, at::kDouble), {}, {.kind = kind});
    loss.objective.backward();
    EXPECT_TRUE(loss.objective.isfinite().item<bool>());
    EXPECT_TRUE(s.grad().isfinite().all().item<bool>());
  }
}

TEST(HiddenLoss, NoTokensAndShortTypesAreOrdinary) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const std::int64_t tokens : {0, 4}) {
      const at::Tensor s = random_tensor({1, tokens, 6}, 1, type).requires_grad_();
      const at::Tensor p = random_tensor({5, 6}, 3, type).requires_grad_();
      const at::Tensor t = random_tensor({1, tokens, 5}, 2, type);
      const HiddenLoss loss = hidden_state_loss(s, t, at::ones({1, tokens}), {p}, {});
      loss.objective.backward();
      EXPECT_EQ(loss.objective.scalar_type(), parallel::accumulation_type(type));
      EXPECT_EQ(s.grad().scalar_type(), type);
      EXPECT_EQ(p.grad().sizes(), p.sizes());
      if (tokens > 0) {
        const at::Tensor expected = plain_loss(at::matmul(s.to(at::kDouble), p.to(at::kDouble).t()),
                                               t.to(at::kDouble), HiddenLossKind::mse);
        expect_close(loss.per_token_n, expected.flatten(), type == at::kBFloat16 ? 2e-2 : 1e-5, "value");
      }
    }
  }
}

TEST(HiddenTermTest, WeighsPairsAndTrainsItsProjections) {
  parallel::ParameterMap parameters({.seed = 1, .dtype = at::kDouble});
  HiddenTerm::Options options;
  options.pairs = checked_pairs({{0, 1, 1.0}, {1, 3, 3.0}}, 2, 4);
  options.student_width = 5;
  options.teacher_width = 4;
  const HiddenTerm term(options, parameters);
  ASSERT_EQ(parameters.all().size(), 2u);
  EXPECT_EQ(parameters.all()[1]->name, "distill.projection.1.3.weight");
  for (const auto& parameter : parameters.all()) {
    parameter->grad.attach(at::empty_like(parameter->value.detach()));
  }
  const std::vector<at::Tensor> s = {random_tensor({3, 5}, 1), random_tensor({3, 5}, 2)};
  const std::vector<at::Tensor> t = {random_tensor({3, 4}, 3), random_tensor({3, 4}, 4)};
  const at::Tensor weight = at::ones({3}, at::kDouble);
  for (const HiddenLossKind kind : {HiddenLossKind::cosine, HiddenLossKind::mse}) {
    const HiddenLoss loss = term.loss(s, t, weight, kind);
    at::Tensor expected = at::zeros({3}, at::kDouble);
    for (std::size_t i = 0; i < 2; ++i) {
      const at::Tensor projected = at::mm(s[i], parameters.all()[i]->value.detach().t());
      expected += options.pairs[i].weight * plain_loss(projected, t[i], kind);
    }
    expect_close(loss.per_token_n, expected, 1e-13, "per token");
  }
  term.loss(s, t, weight, HiddenLossKind::mse).objective.backward();
  for (const auto& parameter : parameters.all()) {
    EXPECT_FALSE(parameter->grad.is_empty()) << parameter->name;
    EXPECT_GT(parameter->grad.buffer().abs().max().item<double>(), 0.0);
  }
}

TEST(LayerPairs, AreCheckedAndSpread) {
  const std::vector<LayerPair> pairs = uniform_pairs(2, 4, 12);
  EXPECT_EQ(pairs[0].student_layer, 1);
  EXPECT_EQ(pairs[0].teacher_layer, 5);
  EXPECT_EQ(pairs[1].student_layer, 3);
  EXPECT_EQ(pairs[1].teacher_layer, 11);
  EXPECT_DOUBLE_EQ(checked_pairs({{0, 0, 1.0}, {1, 1, 3.0}}, 2, 2)[1].weight, 0.75);
  EXPECT_THROW(checked_pairs({{2, 0, 1.0}}, 2, 2), base::ConfigError);
  EXPECT_THROW(checked_pairs({{0, -1, 1.0}}, 2, 2), base::ConfigError);
  EXPECT_THROW(checked_pairs({{0, 0, 0.0}}, 2, 2), base::ConfigError);
  EXPECT_THROW(checked_pairs({{0, 0, 1.0}, {0, 0, 1.0}}, 2, 2), base::ConfigError);
  EXPECT_THROW(uniform_pairs(3, 2, 8), base::ConfigError);
}

}  // namespace
}  // namespace athanor::distill
