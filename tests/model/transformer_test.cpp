#include "model/transformer.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/error.hpp"
#include "model/model_fixture.hpp"

namespace athanor::model {
namespace {

TEST(TransformerConfig, CountsWhatTheModelMakes) {
  for (const std::int64_t every : {1, 2}) {
    for (const bool tied : {false, true}) {
      TransformerConfig config = small_config();
      config.moe.every = every;
      config.moe.shared_experts = 2;
      config.tie_embeddings = tied;
      Fixture fixture(config);
      EXPECT_EQ(count_parameters(config).total, fixture.parameters.global_numel());
      EXPECT_LT(count_parameters(config).active, count_parameters(config).total);
    }
  }
}

TEST(TransformerConfig, BenchShapeHas55MillionParameters) {
  TransformerConfig config;
  config.vocab_size = 8192;
  const ParameterCount count = count_parameters(config);
  EXPECT_NEAR(static_cast<double>(count.total), 55.4e6, 0.1e6);
}

TEST(Transformer, EveryParameterGradientMatchesFiniteDifferences) {
  Fixture fixture(small_config());
  fixture.backward();
  at::NoGradGuard no_grad;
  const double step = 1e-6;
  for (const auto& parameter : fixture.parameters.all()) {
    at::Tensor flat = parameter->value.detach().view(-1);
    const at::Tensor gradient = parameter->grad.buffer().view(-1);
    const double scale = std::max(gradient.abs().max().item<double>(), 1e-3);
    for (const std::int64_t index : {std::int64_t{0}, flat.numel() / 3, flat.numel() - 1}) {
      const double value = flat[index].item<double>();
      flat[index] = value + step;
      const double above = fixture.objective().item<double>();
      flat[index] = value - step;
      const double below = fixture.objective().item<double>();
      flat[index] = value;
      EXPECT_NEAR(gradient[index].item<double>(), (above - below) / (2 * step), 1e-5 * scale)
          << parameter->name << " element " << index;
    }
  }
}

TEST(Transformer, RecomputationGivesTheSameGradientsAndCountsOnce) {
  TransformerConfig config = small_config();
  config.dropout = 0.2;
  Fixture kept(config);
  config.recompute = true;
  Fixture repeated(config);
  kept.backward();
  repeated.backward();
  for (std::size_t i = 0; i < kept.parameters.all().size(); ++i) {
    EXPECT_TRUE(
        at::equal(kept.parameters.all()[i]->grad.buffer(), repeated.parameters.all()[i]->grad.buffer()))
        << kept.parameters.all()[i]->name;
  }
  EXPECT_TRUE(at::equal(kept.statistics[0].counts_E, repeated.statistics[0].counts_E));
  EXPECT_EQ(repeated.statistics[1].counts_E.sum().item<std::int64_t>(), 27 * 2);
}

TEST(Transformer, LayersOfOneParameterSetShareTensorsAndGradient) {
  const TransformerConfig config = small_config();
  std::vector<LayerSpec> layers = resolve_layers(config);
  layers[1].parameter_set = 0;
  Fixture shared(config, layers);
  Fixture separate(config);
  EXPECT_LT(shared.parameters.global_numel(), separate.parameters.global_numel());
  EXPECT_EQ(shared.model.num_parameter_sets(), 1);
  EXPECT_EQ(shared.model.num_sparse_layers(), 2);

  // Two separate layers with equal values: the shared gradient is the sum of theirs.
  const std::string first = "layers.0.", second = "layers.1.";
  {
    at::NoGradGuard no_grad;
    for (const auto& parameter : separate.parameters.all()) {
      if (parameter->name.starts_with(second)) {
        parameter->value.copy_(
            separate.parameters.find(first + parameter->name.substr(second.size()))->value);
      }
    }
  }
  shared.backward();
  separate.backward();
  for (const auto& parameter : shared.parameters.all()) {
    at::Tensor expected = separate.parameters.find(parameter->name)->grad.buffer();
    if (parameter->name.starts_with(first)) {
      expected =
          expected + separate.parameters.find(second + parameter->name.substr(first.size()))->grad.buffer();
    }
    EXPECT_TRUE(at::allclose(parameter->grad.buffer(), expected, 1e-10, 1e-12)) << parameter->name;
  }
}

TEST(Transformer, RangesOfLayersComposeToTheWhole) {
  const TransformerConfig config = small_config();
  Fixture whole(config);
  parallel::ParameterMap first_map({3, at::kDouble, true}), second_map({3, at::kDouble, true});
  const Transformer first(config, resolve_layers(config), {0, 1, true, false}, first_map, whole.grid);
  const Transformer second(config, resolve_layers(config), {1, 2, false, true}, second_map, whole.grid);
  at::NoGradGuard no_grad;
  ForwardContext context = whole.context();
  context.statistics = nullptr;
  context.training = false;
  const auto middle = first.blocks(first.embed(whole.batch, context), whole.batch, context);
  const auto out = second.blocks(middle.h_BsD, whole.batch, context);
  const auto expected = whole.model.blocks(whole.model.embed(whole.batch, context), whole.batch, context);
  EXPECT_TRUE(at::equal(out.h_BsD, expected.h_BsD));
  EXPECT_EQ(second.head_loss(out.h_BsD, whole.batch).sum.item<double>(),
            whole.model.head_loss(expected.h_BsD, whole.batch).sum.item<double>());
  EXPECT_EQ(first_map.find("head.weight"), nullptr);
  EXPECT_EQ(second_map.find("embedding.weight"), nullptr);
}

TEST(Transformer, TiedHeadAddsBothGradients) {
  TransformerConfig config = small_config();
  config.tie_embeddings = true;
  Fixture tied(config);
  EXPECT_EQ(tied.parameters.find("head.weight"), nullptr);
  config.tie_embeddings = false;
  Fixture untied(config);
  {
    at::NoGradGuard no_grad;
    untied.parameters.find("head.weight")->value.copy_(untied.parameters.find("embedding.weight")->value);
  }
  tied.backward();
  untied.backward();
  const at::Tensor expected = untied.parameters.find("head.weight")->grad.buffer() +
                              untied.parameters.find("embedding.weight")->grad.buffer();
  EXPECT_TRUE(at::allclose(tied.parameters.find("embedding.weight")->grad.buffer(), expected, 1e-10, 1e-12));
}

TEST(Transformer, LossOfAnUntrainedModelIsNearTheUniformOne) {
  TransformerConfig config = small_config();
  config.init_std = 0.02;
  Fixture fixture(config);
  ForwardContext context = fixture.context();
  const auto hidden =
      fixture.model.blocks(fixture.model.embed(fixture.batch, context), fixture.batch, context);
  EXPECT_NEAR(fixture.model.head_loss(hidden.h_BsD, fixture.batch).sum.item<double>() / 27, std::log(37.0),
              0.05);
}

TEST(Transformer, RefusesShapesItCannotHold) {
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters({0, at::kFloat, true});
  TransformerConfig config = small_config();
  config.vocab_size = 0;
  EXPECT_THROW(Transformer(config, parameters, grid), base::ConfigError);
  config = small_config();
  config.head_dim = 5;
  EXPECT_THROW(Transformer(config, parameters, grid), base::ConfigError);
}

}  // namespace
}  // namespace athanor::model
