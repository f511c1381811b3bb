// The optimizer in one process: AdamW's numbers, flat storage, masters, skipping.
#include "optim/sharded_optimizer.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "optim/plain_adamw.hpp"

namespace athanor::optim {
namespace {

using parallel::DecayGroup;
using parallel::Parameter;
using parallel::ParameterKind;
using parallel::ParameterMap;
using parallel::ShardSpec;

// Odd sizes, an empty one, both decay groups and kinds.
ParameterMap make_parameters(at::ScalarType type) {
  ParameterMap map({.seed = 3, .dtype = type});
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, DecayGroup decay,
                       ParameterKind kind) {
    map.add({.name = name,
             .shard = ShardSpec::whole(std::move(shape)),
             .decay = decay,
             .kind = kind,
             .init = {}});
  };
  add("embedding.weight", {50, 7}, DecayGroup::decay, ParameterKind::dense);
  add("norm.weight", {37}, DecayGroup::no_decay, ParameterKind::dense);
  add("experts.weight", {3, 5, 9}, DecayGroup::decay, ParameterKind::expert);
  add("none.weight", {0, 4}, DecayGroup::decay, ParameterKind::dense);
  add("head.weight", {128}, DecayGroup::decay, ParameterKind::dense);
  return map;
}

at::Tensor gradient_of(const Parameter& parameter, std::int64_t step) {
  const at::Tensor index = at::arange(parameter.value.numel(), at::kDouble);
  const at::Tensor flat =
      at::sin(index * 1.7 + static_cast<double>(step * step + 1)) * (1.0 + 0.1 * index / 7.0);
  return flat.view(parameter.value.sizes());
}

void add_gradients(const ParameterMap& map, std::int64_t step, double scale = 1.0) {
  for (const auto& parameter : map.all()) {
    parameter->grad.add(
        (gradient_of(*parameter, step) * scale).to(parallel::accumulation_type(map.options().dtype)));
  }
}

std::vector<double> as_doubles(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().to(at::kDouble).contiguous().view({-1});
  const double* data = flat.const_data_ptr<double>();
  return {data, data + flat.numel()};
}

double largest_relative_difference(const at::Tensor& tensor, const std::vector<double>& expected) {
  const std::vector<double> actual = as_doubles(tensor);
  double difference = 0.0;
  double largest = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference = std::max(difference, std::abs(actual[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return largest == 0.0 ? difference : difference / largest;
}

OptimOptions test_options() {
  OptimOptions options;
  options.clip = 5.0;
  return options;
}

// 40 updates of changing learning rate; returns the largest relative difference to the plain implementation.
double compare_with_plain(at::ScalarType type) {
  const ParameterMap map = make_parameters(type);
  const parallel::ProcessGrid grid;
  const OptimOptions options = test_options();
  ShardedOptimizer optimizer(options, GradientWire{}, map, grid);
  tests::PlainAdamw plain;
  std::vector<std::vector<double>> expected;
  std::vector<tests::PlainAdamw::Moments> moments(map.all().size());
  for (const auto& parameter : map.all()) {
    expected.push_back(as_doubles(parameter->value));
  }
  double worst = 0.0;
  for (std::int64_t step = 0; step < 40; ++step) {
    const double lr = 1e-2 / static_cast<double>(step + 1);
    const double scale = step % 2 == 0 ? 0.25 : 1e-3;  // clipped and not clipped
    optimizer.begin_step();
    add_gradients(map, step);
    const UpdateResult result = optimizer.step({.lr = lr, .gradient_scale = scale});
    EXPECT_FALSE(result.skipped);
    double squares = 0.0;
    for (const auto& parameter : map.all()) {
      squares += gradient_of(*parameter, step).square().sum().item<double>();
    }
    const double norm = scale * std::sqrt(squares);
    worst = std::max(worst, std::abs(result.grad_norm - norm) / norm);
    EXPECT_EQ(norm > options.clip, step % 2 == 0);
    const double factor = scale * std::min(1.0, options.clip / (norm + 1e-6));
    ++plain.updates;
    for (std::size_t i = 0; i < map.all().size(); ++i) {
      const Parameter& parameter = *map.all()[i];
      const double decay = parameter.decay == DecayGroup::decay ? options.weight_decay : 0.0;
      plain.update(expected[i], moments[i], as_doubles(gradient_of(parameter, step) * factor), lr, decay);
      worst = std::max(worst, largest_relative_difference(parameter.value, expected[i]));
    }
  }
  EXPECT_EQ(optimizer.updates(), 40);
  return worst;
}

TEST(ShardedOptimizer, MatchesPlainAdamwInF64) {
  EXPECT_LT(compare_with_plain(at::kDouble), 1e-13);
}

TEST(ShardedOptimizer, MatchesPlainAdamwInF32) {
  EXPECT_LT(compare_with_plain(at::kFloat), 5e-6);
}

TEST(ShardedOptimizer, MatchesTorchAdamwAndClipGradNorm) {
  const ParameterMap map = make_parameters(at::kDouble);
  std::vector<at::Tensor> decayed, others, all;
  for (const auto& parameter : map.all()) {
    at::Tensor copy = parameter->value.detach().clone().requires_grad_();
    (parameter->decay == DecayGroup::decay ? decayed : others).push_back(copy);
    all.push_back(copy);
  }
  const OptimOptions options = test_options();
  const auto group = [&](double decay) {
    return std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(1e-2)
                                                            .betas({options.beta1, options.beta2})
                                                            .eps(options.eps)
                                                            .weight_decay(decay));
  };
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(decayed, group(options.weight_decay));
  groups.emplace_back(others, group(0.0));
  torch::optim::AdamW theirs(groups, torch::optim::AdamWOptions(1e-2));

  const parallel::ProcessGrid grid;
  ShardedOptimizer ours(options, GradientWire{}, map, grid);
  for (std::int64_t step = 0; step < 20; ++step) {
    ours.begin_step();
    add_gradients(map, step);
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].mutable_grad() = gradient_of(*map.all()[i], step);
    }
    const double norm = torch::nn::utils::clip_grad_norm_(all, options.clip);
    theirs.step();
    const UpdateResult result = ours.step({.lr = 1e-2, .gradient_scale = 1.0});
    EXPECT_NEAR(result.grad_norm, norm, 1e-12 * norm);
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_LT(largest_relative_difference(map.all()[i]->value, as_doubles(all[i])), 1e-13)
          << map.all()[i]->name;
    }
  }
}

TEST(ShardedOptimizer, KeepsValuesAndLeavesWhenItMovesThem) {
  const ParameterMap map = make_parameters(at::kFloat);
  std::vector<at::Tensor> handles, values;
  std::vector<bool> needs_gradient;
  for (const auto& parameter : map.all()) {
    handles.push_back(parameter->value);
    values.push_back(parameter->value.detach().clone());
    needs_gradient.push_back(parameter->value.requires_grad());
  }
  const parallel::ProcessGrid grid;
  ShardedOptimizer optimizer(OptimOptions{}, GradientWire{}, map, grid);
  for (std::size_t i = 0; i < handles.size(); ++i) {
    const Parameter& parameter = *map.all()[i];
    EXPECT_TRUE(parameter.value.equal(values[i])) << parameter.name;
    EXPECT_TRUE(parameter.value.is_leaf());
    EXPECT_TRUE(parameter.value.is_contiguous());
    EXPECT_EQ(parameter.value.requires_grad(), needs_gradient[i]);
    EXPECT_TRUE(parameter.value.is_same(handles[i]));
    EXPECT_TRUE(parameter.grad.is_attached());
  }
  optimizer.begin_step();
  add_gradients(map, 0);
  optimizer.step({.lr = 0.1, .gradient_scale = 1.0});
  EXPECT_FALSE(handles[0].equal(values[0]));  // whoever holds the tensor sees the update
}

TEST(ShardedOptimizer, ParametersWithoutGradientOnlyDecay) {
  const ParameterMap map = make_parameters(at::kDouble);
  const parallel::ProcessGrid grid;
  OptimOptions options;
  ShardedOptimizer optimizer(options, GradientWire{}, map, grid);
  optimizer.begin_step();
  add_gradients(map, 0);
  optimizer.begin_step();  // forgets them
  const at::Tensor embedding = map.find("embedding.weight")->value.detach().clone();
  const at::Tensor norm = map.find("norm.weight")->value.detach().clone();
  const UpdateResult result = optimizer.step({.lr = 0.1, .gradient_scale = 1.0});
  EXPECT_EQ(result.grad_norm, 0.0);
  EXPECT_TRUE(at::allclose(map.find("embedding.weight")->value,
                           embedding * (1.0 - 0.1 * options.weight_decay), 1e-15));
  EXPECT_TRUE(map.find("norm.weight")->value.equal(norm));
}

TEST(ShardedOptimizer, NonFiniteGradientChangesNothing) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    const ParameterMap map = make_parameters(at::kFloat);
    const parallel::ProcessGrid grid;
    ShardedOptimizer optimizer(OptimOptions{}, GradientWire{}, map, grid);
    optimizer.begin_step();
    add_gradients(map, 0);
    optimizer.step({.lr = 0.1, .gradient_scale = 1.0});
    std::vector<at::Tensor> before;
    for (const OwnedState& state : optimizer.owned_state()) {
      before.insert(before.end(), {state.master.clone(), state.exp_avg.clone(), state.exp_avg_sq.clone()});
    }
    optimizer.begin_step();
    add_gradients(map, 1);
    at::Tensor spoiled = at::zeros({3, 5, 9}, at::kFloat);
    spoiled[2][4][8] = bad;
    map.find("experts.weight")->grad.add(spoiled);
    const UpdateResult result = optimizer.step({.lr = 0.1, .gradient_scale = 1.0});
    EXPECT_TRUE(result.skipped);
    EXPECT_FALSE(std::isfinite(result.grad_norm));
    EXPECT_EQ(optimizer.updates(), 1);
    std::size_t i = 0;
    for (const OwnedState& state : optimizer.owned_state()) {
      EXPECT_TRUE(state.master.equal(before[i++]));
      EXPECT_TRUE(state.exp_avg.equal(before[i++]));
      EXPECT_TRUE(state.exp_avg_sq.equal(before[i++]));
    }
    // The next step is an ordinary one: no trace of the bad gradient is left.
    optimizer.begin_step();
    add_gradients(map, 1);
    EXPECT_FALSE(optimizer.step({.lr = 0.1, .gradient_scale = 1.0}).skipped);
  }
}

TEST(ShardedOptimizer, MastersKeepWhatSixteenBitsLose) {
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    const ParameterMap map = make_parameters(type);
    const ParameterMap full = make_parameters(at::kFloat);
    for (const auto& parameter : full.all()) {
      const at::NoGradGuard no_grad;
      parameter->value.copy_(map.find(parameter->name)->value);
    }
    const parallel::ProcessGrid grid;
    ShardedOptimizer optimizer(test_options(), GradientWire{}, map, grid);
    ShardedOptimizer reference(test_options(), GradientWire{}, full, grid);
    for (std::int64_t step = 0; step < 10; ++step) {
      optimizer.begin_step();
      reference.begin_step();
      add_gradients(map, step, 1024.0);  // a loss scale; exact in binary
      add_gradients(full, step);
      const UpdateResult scaled = optimizer.step({.lr = 1e-5, .gradient_scale = 1.0 / 1024.0});
      const UpdateResult plain = reference.step({.lr = 1e-5, .gradient_scale = 1.0});
      EXPECT_EQ(scaled.grad_norm, plain.grad_norm);
    }
    // Updates of 1e-5 vanish in 16 bits at a time, but not in the master.
    for (const OwnedState& state : optimizer.owned_state()) {
      const at::Tensor expected = full.find(state.parameter->name)->value.detach().view({-1});
      EXPECT_TRUE(at::allclose(state.master, expected.narrow(0, state.first, state.count), 1e-6, 1e-8));
      EXPECT_TRUE(state.parameter->value.detach()
                      .view({-1})
                      .narrow(0, state.first, state.count)
                      .equal(state.master.to(type)));
    }
  }
}

void expect_refused(const OptimOptions& options, const GradientWire& wire, at::ScalarType type,
                    const std::string& option, const std::string& why) {
  const ParameterMap map = make_parameters(type);
  const parallel::ProcessGrid grid;
  try {
    ShardedOptimizer optimizer(options, wire, map, grid);
    FAIL() << "not refused";
  } catch (const base::ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(option), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
  }
}

TEST(ShardedOptimizer, RefusesRoundedWiresWithoutShardsAndInF64) {
  OptimOptions unsharded;
  unsharded.zero = 0;
  for (const auto wire : {base::WireType::bf16, base::WireType::fp8}) {
    expect_refused(unsharded, {wire}, at::kFloat, "precision.grad_comm", "optim.zero=0");
    expect_refused({}, {wire}, at::kDouble, "precision.grad_comm", "f64");
  }
  const GradientWire nothing_to_feed_back{.error_feedback = true};
  expect_refused({}, nothing_to_feed_back, at::kFloat, "precision.error_feedback", "grad_comm=full");
}

}  // namespace
}  // namespace athanor::optim
