#include "parallel/parameter_map.hpp"

#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "base/philox.hpp"

namespace athanor::parallel {
namespace {

ParameterOptions normal_parameter(const std::string& name, ShardSpec shard, double std = 0.5) {
  ParameterOptions options;
  options.name = name;
  options.shard = std::move(shard);
  options.init.std = std;
  return options;
}

at::Tensor initial_value(const ShardSpec& shard, at::ScalarType dtype) {
  ParameterMap map(ParameterMap::Options{.seed = 11, .dtype = dtype});
  return map.add(normal_parameter("layers.0.w", shard))->value.detach();
}

TEST(ParameterMap, SlicesHoldTheValuesOfTheLogicalTensor) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const std::vector<std::int64_t>& shape :
         {std::vector<std::int64_t>{5, 7, 3}, {9, 64}, {301, 257}, {1}}) {
      const at::Tensor whole = initial_value(ShardSpec::whole(shape), dtype);
      EXPECT_EQ(whole.scalar_type(), dtype);
      for (std::int64_t dim = 0; dim < static_cast<std::int64_t>(shape.size()); ++dim) {
        const std::int64_t extent = shape[static_cast<std::size_t>(dim)];
        for (const auto& [first, count] : {std::pair{extent / 3, extent / 2}, {extent, std::int64_t{0}}}) {
          const at::Tensor slice = initial_value(ShardSpec::slice(shape, dim, first, count), dtype);
          EXPECT_TRUE(at::equal(slice, whole.narrow(dim, first, count)));
        }
      }
    }
  }
}

TEST(ParameterMap, ElementsAreTheNormalNumbersOfTheirStream) {
  const at::Tensor value = initial_value(ShardSpec::whole({50, 100}), at::kDouble);
  const base::PhiloxStream stream(11, base::RandomPurpose::initial_weight, "layers.0.w");
  for (std::int64_t i = 0; i < value.numel(); ++i) {
    EXPECT_NEAR(value.const_data_ptr<double>()[i], 0.5 * stream.normal(static_cast<std::uint64_t>(i)), 1e-14);
  }
}

TEST(ParameterMap, ValuesAreNormalAndDependOnSeedAndName) {
  ParameterMap one(ParameterMap::Options{});
  ParameterMap other(ParameterMap::Options{.seed = 1});
  const auto shard = ShardSpec::whole({400, 500});
  const at::Tensor a = one.add(normal_parameter("a", shard, 0.02))->value.detach();
  const at::Tensor b = one.add(normal_parameter("b", shard, 0.02))->value.detach();
  const at::Tensor c = other.add(normal_parameter("a", shard, 0.02))->value.detach();
  EXPECT_NEAR(a.mean().item<double>(), 0.0, 0.02 * 4 / std::sqrt(2e5));
  EXPECT_NEAR(a.std().item<double>(), 0.02, 0.02 * 4 / std::sqrt(4e5));
  EXPECT_FALSE(at::equal(a, b));
  EXPECT_FALSE(at::equal(a, c));
}

TEST(ParameterMap, ConstantInitialisationAndLeafValues) {
  ParameterMap map(ParameterMap::Options{});
  ParameterOptions options = normal_parameter("norm", ShardSpec::whole({6}));
  options.init = {InitialValue::Kind::constant, 0.0, 1.0};
  options.decay = DecayGroup::no_decay;
  const auto parameter = map.add(options);
  EXPECT_TRUE(at::equal(parameter->value.detach(), at::ones({6})));
  EXPECT_TRUE(parameter->value.requires_grad());
  EXPECT_TRUE(parameter->value.is_leaf());
  EXPECT_EQ(parameter->decay, DecayGroup::no_decay);
  EXPECT_FALSE(parameter->grad.is_attached());
}

TEST(ParameterMap, SharesAParameterOfEqualNameAndSlice) {
  ParameterMap map(ParameterMap::Options{});
  const auto first = map.add(normal_parameter("w", ShardSpec::slice({8, 4}, 0, 4, 4)));
  EXPECT_EQ(map.add(normal_parameter("w", ShardSpec::slice({8, 4}, 0, 4, 4))), first);
  EXPECT_EQ(map.all().size(), 1u);
  EXPECT_THROW(map.add(normal_parameter("w", ShardSpec::slice({8, 4}, 0, 0, 4))), base::InternalError);
  EXPECT_EQ(map.find("w"), first);
  EXPECT_EQ(map.find("v"), nullptr);
  map.add(normal_parameter("v", ShardSpec::whole({3})));
  EXPECT_EQ(map.global_numel(), 35);
  EXPECT_EQ(map.local_numel(), 19);
}

TEST(ParameterMap, DryRunAllocatesNothing) {
  ParameterMap map(ParameterMap::Options{.allocate = false});
  const auto parameter = map.add(normal_parameter("huge", ShardSpec::whole({1 << 20, 1 << 20})));
  EXPECT_FALSE(parameter->value.defined());
  EXPECT_EQ(map.local_numel(), std::int64_t{1} << 40);
}

class GradAccumulatorTypes : public testing::TestWithParam<std::pair<at::ScalarType, at::ScalarType>> {};

TEST_P(GradAccumulatorTypes, AddsGradientsAndProducts) {
  at::manual_seed(1);
  const auto [compute, accumulation] = GetParam();
  const double tolerance = compute == at::kDouble ? 1e-12 : (compute == at::kFloat ? 1e-5 : 0.05);
  GradAccumulator grad;
  EXPECT_FALSE(grad.is_attached());
  grad.attach(at::full({3, 5}, 77.0, accumulation));  // what was there must not matter
  const at::Tensor a = at::randn({3, 4}, at::kDouble).to(compute);
  const at::Tensor b = at::randn({4, 5}, at::kDouble).to(compute);
  const at::Tensor g = at::randn({3, 5}, at::kDouble).to(compute);
  const at::Tensor product = a.to(at::kDouble).mm(b.to(at::kDouble));
  grad.add_matmul(a, b);
  EXPECT_TRUE(at::allclose(grad.buffer().to(at::kDouble), product, tolerance, tolerance));
  grad.add_matmul(a, b);
  grad.add(g);
  EXPECT_TRUE(
      at::allclose(grad.buffer().to(at::kDouble), 2 * product + g.to(at::kDouble), tolerance, tolerance));
  grad.reset();
  grad.add(g);
  EXPECT_TRUE(at::equal(grad.buffer(), g.to(accumulation)));
  grad.reset();
  grad.finish();
  EXPECT_TRUE(at::equal(grad.buffer(), at::zeros({3, 5}, accumulation)));
  EXPECT_FALSE(grad.is_empty());
  grad.buffer().fill_(77.0);
  grad.reset();
  grad.add_matmul(a.narrow(1, 0, 0), b.narrow(0, 0, 0));  // no tokens: the product is zero
  EXPECT_TRUE(at::equal(grad.buffer(), at::zeros({3, 5}, accumulation)));
}

TEST_P(GradAccumulatorTypes, AddsProductsToParts) {
  at::manual_seed(1);
  const auto [compute, accumulation] = GetParam();
  const double tolerance = compute == at::kDouble ? 1e-12 : (compute == at::kFloat ? 1e-5 : 0.05);
  GradAccumulator grad;
  grad.attach(at::full({2, 3, 5}, 77.0, accumulation));
  const at::Tensor a =
      at::randn({3, 4}, at::kDouble).to(compute).requires_grad_();  // as a weight in a backward pass
  const at::Tensor b = at::randn({4, 5}, at::kDouble).to(compute);
  const at::Tensor product = a.detach().to(at::kDouble).mm(b.to(at::kDouble));
  grad.add_matmul_part(1, a, b);
  grad.zero_part_if_empty(0);
  grad.mark_nonempty();
  EXPECT_TRUE(at::allclose(grad.buffer()[1].to(at::kDouble), product, tolerance, tolerance));
  EXPECT_EQ(grad.buffer()[0].abs().max().item<double>(), 0.0);
  grad.zero_part_if_empty(1);  // not empty any more: keeps it
  grad.add_matmul_part(1, a, b);
  EXPECT_TRUE(at::allclose(grad.buffer()[1].to(at::kDouble), 2 * product, tolerance, tolerance));
  grad.add_matmul_part(0, a.narrow(1, 0, 0), b.narrow(0, 0, 0));  // an expert without tokens
  EXPECT_EQ(grad.buffer()[0].abs().max().item<double>(), 0.0);
}

INSTANTIATE_TEST_SUITE_P(Types, GradAccumulatorTypes,
                         testing::Values(std::pair(at::kFloat, at::kFloat),
                                         std::pair(at::kDouble, at::kDouble),
                                         std::pair(at::kBFloat16, at::kFloat)));

TEST(GradAccumulator, RefusesWhatDoesNotFit) {
  GradAccumulator grad;
  EXPECT_THROW(grad.add(at::ones({2})), base::InternalError);
  EXPECT_THROW(grad.attach(at::ones({2}, at::kLong)), base::InternalError);
  grad.attach(at::zeros({2, 2}));
  EXPECT_THROW(grad.add(at::ones({4})), base::InternalError);
  EXPECT_THROW(grad.add_matmul(at::ones({3, 1}), at::ones({1, 2})), base::InternalError);
}

TEST(AccumulationType, IsF64OnlyForF64) {
  EXPECT_EQ(accumulation_type(at::kDouble), at::kDouble);
  EXPECT_EQ(accumulation_type(at::kFloat), at::kFloat);
  EXPECT_EQ(accumulation_type(at::kBFloat16), at::kFloat);
  EXPECT_EQ(accumulation_type(at::kHalf), at::kFloat);
}

}  // namespace
}  // namespace athanor::parallel
