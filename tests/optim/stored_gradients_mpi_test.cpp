// Gradients that wait for their reduction in FP8: the bits and bytes of what is stored, and the optimizer
// with them against the one that rounds on the wire.
#include "optim/detail/stored_gradients.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.hpp"
#include "optim/detail/fp8_parts.hpp"
#include "optim/fake_model.hpp"
#include "optim/gradient_reducer.hpp"
#include "support/mpi_test.hpp"

namespace athanor::optim {
namespace {

using athanor::tests::world;
using detail::StoredGradientRecords;

at::Tensor numbers(std::int64_t count) {
  return at::sin(at::arange(count, at::kDouble) * 1.7)
      .mul(at::exp(at::arange(count, at::kDouble) * 0.01))
      .to(at::kFloat);
}

TEST(StoredGradientRecords, HoldBlocksOfATensorAndZerosBehindIt) {
  StoredGradientRecords stored(512, base::Fp8Format::e4m3);
  EXPECT_EQ(stored.bytes(), 4 * 132);
  EXPECT_LE(static_cast<double>(stored.bytes()), 0.55 * 2 * 512);  // of fp16's
  EXPECT_EQ(stored.read(0, 512).abs().max().item<float>(), 0.0f);
  parallel::TrafficCounters traffic;
  const at::Tensor gradient = numbers(300);
  stored.put(128, gradient.view({3, 100}), traffic);
  const at::Tensor padded = at::constant_pad_nd(gradient, {0, 84});
  const at::Tensor records = at::empty({3, detail::record_bytes}, at::kByte);
  kernels::Fp8Counts counts;
  detail::quantize_part(padded, 0, 384, base::Fp8Format::e4m3, records, counts);
  EXPECT_TRUE(stored.records(128, 384).equal(records));
  EXPECT_EQ(traffic.losses().underflow, counts.underflow);
  EXPECT_EQ(stored.read(128 + 384 - 128, 128).narrow(0, 44, 84).abs().max().item<float>(), 0.0f);
  at::Tensor pieces = at::empty({0}, at::kFloat);
  stored.for_each_piece([&](std::int64_t first, const at::Tensor& piece) {
    EXPECT_EQ(first, pieces.numel());
    pieces = at::cat({pieces, piece});
  });
  EXPECT_TRUE(pieces.equal(stored.read(0, 512)));
  stored.put(0, at::full({1}, std::numeric_limits<float>::infinity()), traffic);
  EXPECT_TRUE(at::isnan(stored.read(0, 128)).all().item<bool>());
  EXPECT_EQ(traffic.losses().nonfinite, 1);
  stored.put(384, at::empty({0}, at::kFloat), traffic);  // an empty slice
  EXPECT_THROW(stored.records(64, 128), base::InternalError);
}

TEST(StoredGradientRecords, AreOfTheKindsThatAreAskedFor) {
  using parallel::ParameterKind;
  GradientWire wire{base::WireType::fp8};
  EXPECT_FALSE(detail::are_stored(wire, ParameterKind::expert));
  wire.stored = StoredGradients::experts;
  EXPECT_TRUE(detail::are_stored(wire, ParameterKind::expert));
  EXPECT_FALSE(detail::are_stored(wire, ParameterKind::dense));
  wire.stored = StoredGradients::all;
  EXPECT_TRUE(detail::are_stored(wire, ParameterKind::dense));
}

struct Trainee {
  explicit Trainee(const GradientWire& wire, at::ScalarType type = at::kFloat)
      : grid(parallel::ParallelDims{.dp = world().size()}, world()),
        model(tests::fake_parameters(world().size())),
        map(tests::make_map(model, world().rank(), type)) {
    OptimOptions options;
    options.bucket_elements = 1000;
    optimizer = std::make_unique<ShardedOptimizer>(options, wire, map, grid);
  }
  UpdateResult step(std::int64_t number, float bad = 0.0f) {
    optimizer->begin_step();
    for (std::size_t i = 0; i < model.size(); ++i) {
      if (model[i].name == "norm.weight" && number == 1) {
        continue;  // nothing reached it
      }
      at::Tensor gradient = tests::local_gradient(model[i], i, world().rank(), number, at::kFloat);
      if (bad != 0.0f && world().rank() == world().size() - 1 && model[i].name == "big.weight") {
        gradient.view({-1})[5] = bad;
      }
      map.all()[i]->grad.add(gradient);
    }
    return optimizer->step({.lr = 1e-2, .gradient_scale = 1.0 / 64.0});
  }
  parallel::ProcessGrid grid;
  std::vector<tests::FakeParameter> model;
  parallel::ParameterMap map;
  std::unique_ptr<ShardedOptimizer> optimizer;
};

GradientWire stored_wire(StoredGradients which) {
  GradientWire wire{base::WireType::fp8};
  wire.stored = which;
  return wire;
}

// Slices with several holders have the wire's bits; those with one are rounded here and nowhere else.
TEST(StoredGradientsOptimizer, UpdatesAsTheFp8WireDoes) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const StoredGradients which : {StoredGradients::experts, StoredGradients::all}) {
      Trainee wire({base::WireType::fp8}, type), stored(stored_wire(which), type);
      for (std::int64_t step = 0; step < 3; ++step) {
        const double norm = wire.step(step).grad_norm;
        EXPECT_NEAR(stored.step(step).grad_norm, norm, 0.02 * norm);
      }
      for (std::size_t i = 0; i < wire.model.size(); ++i) {
        const at::Tensor a = wire.map.all()[i]->value.detach(), b = stored.map.all()[i]->value.detach();
        if (a.numel() > 0) {
          EXPECT_LE((a - b).abs().mean().item<double>(), 2e-3) << wire.model[i].name;
        }
      }
    }
  }
}

TEST(StoredGradientsOptimizer, HasNoFlatStorageOfFullSize) {
  const FlatLayout layout({1000, 5000}, world().size(), 2000);
  const GradientReducer reducer(layout, world(), at::kFloat, parallel::Traffic::grad_expert,
                                stored_wire(StoredGradients::experts));
  EXPECT_FALSE(reducer.flat().defined());
  ASSERT_NE(reducer.stored(), nullptr);
  EXPECT_EQ(reducer.stored()->bytes(), layout.total() / 128 * 132);
  EXPECT_EQ(reducer.shard().defined(), world().size() > 1);
  const GradientReducer dense(layout, world(), at::kFloat, parallel::Traffic::grad_dense,
                              stored_wire(StoredGradients::experts));
  EXPECT_TRUE(dense.flat().defined());
  EXPECT_EQ(dense.stored(), nullptr);
}

TEST(StoredGradientsOptimizer, NonFiniteGradientsStopTheStepOnAllRanks) {
  Trainee trainee(stored_wire(StoredGradients::all), at::kBFloat16);
  EXPECT_FALSE(trainee.step(0).skipped);
  std::vector<at::Tensor> before;
  for (const auto& parameter : trainee.map.all()) {
    before.push_back(parameter->value.detach().clone());
  }
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(trainee.step(2, bad).skipped);
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_TRUE(trainee.map.all()[i]->value.detach().equal(before[i]));
    }
  }
  EXPECT_FALSE(trainee.step(2).skipped);
}

TEST(StoredGradientsOptimizer, TakesOneGradientAStep) {
  Trainee trainee(stored_wire(StoredGradients::all));
  trainee.optimizer->begin_step();
  parallel::GradAccumulator& grad = trainee.map.find("q.weight")->grad;
  EXPECT_TRUE(grad.is_attached());
  EXPECT_FALSE(grad.keeps_sum());
  const at::Tensor gradient = at::ones(trainee.map.find("q.weight")->value.sizes(), at::kFloat);
  grad.add(gradient);
  EXPECT_FALSE(grad.is_empty());
  EXPECT_THROW(grad.add(gradient), base::InternalError);
  grad.reset();
  grad.add(gradient);
}

}  // namespace
}  // namespace athanor::optim
