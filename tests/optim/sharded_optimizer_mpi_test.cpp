// The optimizer on several ranks against one rank that has the whole model.
#include "optim/sharded_optimizer.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "base/error.hpp"
#include "optim/bucket.hpp"
#include "optim/fake_model.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::optim {
namespace {

using tests::DenseReference;
using tests::FakeParameter;

// A model, its map on this rank and an optimizer over all ranks.
struct Trainee {
  Trainee(const OptimOptions& options, at::ScalarType type)
      : ranks(athanor::tests::world().size()),
        rank(athanor::tests::world().rank()),
        grid(parallel::ParallelDims{.dp = ranks}, athanor::tests::world()),
        model(tests::fake_parameters(ranks)),
        map(tests::make_map(model, rank, type)),
        optimizer(options, GradientWire{}, map, grid) {}

  void add_gradients(std::int64_t step, double scale = 1.0) {
    optimizer.begin_step();
    const at::ScalarType type = parallel::accumulation_type(map.options().dtype);
    for (std::size_t i = 0; i < model.size(); ++i) {
      map.all()[i]->grad.add(tests::local_gradient(model[i], i, rank, step, type) * scale);
    }
  }
  std::size_t index_of(const parallel::Parameter& parameter) const {
    for (std::size_t i = 0; i < model.size(); ++i) {
      if (model[i].name == parameter.name) {
        return i;
      }
    }
    throw base::InternalError("no parameter {}", parameter.name);
  }

  int ranks;
  int rank;
  parallel::ProcessGrid grid;
  std::vector<FakeParameter> model;
  parallel::ParameterMap map;
  ShardedOptimizer optimizer;
};

OptimOptions options_of(std::int64_t zero, std::int64_t bucket_elements = 8 << 20) {
  OptimOptions options;
  options.zero = zero;
  options.bucket_elements = bucket_elements;
  options.clip = 20.0;
  return options;
}

double lr_of(std::int64_t step) {
  return 1e-2 / static_cast<double>(step + 1);
}
// Powers of two, so that they do not blur comparisons; clipped in even steps only.
double scale_of(std::int64_t step) {
  return step % 2 == 0 ? 1.0 : 1.0 / 64.0;
}

UpdateResult run_step(Trainee& trainee, std::int64_t step, double loss_scale = 1.0) {
  trainee.add_gradients(step, loss_scale);
  return trainee.optimizer.step({.lr = lr_of(step), .gradient_scale = scale_of(step) / loss_scale});
}

// Largest difference of elements [first, ...) of a flattened slice from the logical tensor, over the latter's
// largest.
double difference(const at::Tensor& actual, const parallel::ShardSpec& spec, std::int64_t first,
                  const std::vector<double>& logical) {
  const at::Tensor flat = actual.detach().to(at::kDouble).contiguous().view({-1});
  double largest = 0.0;
  double worst = 0.0;
  for (const double element : logical) {
    largest = std::max(largest, std::abs(element));
  }
  for (std::int64_t i = 0; i < flat.numel(); ++i) {
    const double expected = logical[static_cast<std::size_t>(spec.global_index(first + i))];
    worst = std::max(worst, std::abs(flat.const_data_ptr<double>()[i] - expected));
  }
  return largest == 0.0 ? worst : worst / largest;
}

void expect_equals_reference(Trainee& trainee, const DenseReference& reference, double tolerance) {
  for (std::size_t i = 0; i < trainee.model.size(); ++i) {
    const parallel::Parameter& parameter = *trainee.map.all()[i];
    EXPECT_LE(difference(parameter.value, parameter.shard, 0, reference.value(i)), tolerance)
        << parameter.name;
  }
  for (const OwnedState& state : trainee.optimizer.owned_state()) {
    const std::size_t i = trainee.index_of(*state.parameter);
    const parallel::ShardSpec& spec = state.parameter->shard;
    const std::string& name = state.parameter->name;
    EXPECT_LE(difference(state.master, spec, state.first, reference.value(i)), tolerance) << name;
    EXPECT_LE(difference(state.exp_avg, spec, state.first, reference.moments(i).first), tolerance) << name;
    EXPECT_LE(difference(state.exp_avg_sq, spec, state.first, reference.moments(i).second), tolerance)
        << name;
  }
}

class ShardedOptimizerMpi : public ::testing::TestWithParam<std::tuple<std::int64_t, std::int64_t>> {};

TEST_P(ShardedOptimizerMpi, EqualsOneRankInF64) {
  const auto [zero, bucket] = GetParam();
  const OptimOptions options = options_of(zero, bucket);
  Trainee trainee(options, at::kDouble);
  DenseReference reference(trainee.model, trainee.ranks, options, at::kDouble);
  bool clipped = false;
  bool not_clipped = false;
  for (std::int64_t step = 0; step < 4; ++step) {
    const UpdateResult result = run_step(trainee, step);
    const double norm = reference.step(step, lr_of(step), scale_of(step));
    EXPECT_FALSE(result.skipped);
    EXPECT_NEAR(result.grad_norm, norm, 1e-12 * norm);
    (norm > options.clip ? clipped : not_clipped) = true;
  }
  EXPECT_TRUE(clipped && not_clipped);
  expect_equals_reference(trainee, reference, 1e-12);
}

TEST_P(ShardedOptimizerMpi, EqualsOneRankInF32) {
  const auto [zero, bucket] = GetParam();
  const OptimOptions options = options_of(zero, bucket);
  Trainee trainee(options, at::kFloat);
  DenseReference reference(trainee.model, trainee.ranks, options, at::kFloat);
  for (std::int64_t step = 0; step < 4; ++step) {
    const UpdateResult result = run_step(trainee, step);
    const double norm = reference.step(step, lr_of(step), scale_of(step));
    EXPECT_NEAR(result.grad_norm, norm, 1e-12 * norm);  // the contributions' sums are exact in f32
  }
  expect_equals_reference(trainee, reference, 2e-6);
}

TEST_P(ShardedOptimizerMpi, BitsDoNotDependOnBucketsOrSharding) {
  const auto [zero, bucket] = GetParam();
  for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    Trainee plain(options_of(0), type);
    Trainee trainee(options_of(zero, bucket), type);
    for (std::int64_t step = 0; step < 3; ++step) {
      EXPECT_EQ(run_step(plain, step, 1.0 / 3.0).grad_norm, run_step(trainee, step, 1.0 / 3.0).grad_norm);
    }
    for (std::size_t i = 0; i < plain.model.size(); ++i) {
      EXPECT_TRUE(plain.map.all()[i]->value.equal(trainee.map.all()[i]->value)) << plain.model[i].name;
    }
  }
}

TEST_P(ShardedOptimizerMpi, HoldersCoverEveryElement) {
  const auto [zero, bucket] = GetParam();
  Trainee trainee(options_of(zero, bucket), at::kFloat);
  std::vector<at::Tensor> seen, held;
  for (const FakeParameter& parameter : trainee.model) {
    seen.push_back(at::zeros({parameter.slice(0).global_numel()}, at::kLong));
    held.push_back(at::zeros({parameter.slice(0).global_numel()}, at::kLong));
  }
  for (const OwnedState& state : trainee.optimizer.owned_state()) {
    EXPECT_GT(state.count, 0);
    EXPECT_EQ(state.master.numel(), state.count);
    for (std::int64_t i = 0; i < state.count; ++i) {
      seen[trainee.index_of(*state.parameter)][state.parameter->shard.global_index(state.first + i)] += 1;
    }
  }
  for (std::size_t p = 0; p < trainee.model.size(); ++p) {
    for (int rank = 0; rank < trainee.ranks; ++rank) {
      const parallel::ShardSpec spec = trainee.model[p].slice(rank);
      for (std::int64_t i = 0; i < spec.local_numel(); ++i) {
        held[p][spec.global_index(i)] += 1;
      }
    }
    parallel::all_reduce_(seen[p], parallel::ReduceOp::sum, trainee.grid.role(), parallel::Traffic::other);
    const at::Tensor expected = zero == 1 ? at::ones_like(held[p]) : held[p];
    EXPECT_TRUE(seen[p].equal(expected)) << trainee.model[p].name;
  }
}

TEST_P(ShardedOptimizerMpi, NonFiniteOnOneRankSkipsEverywhere) {
  const auto [zero, bucket] = GetParam();
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    Trainee trainee(options_of(zero, bucket), type);
    run_step(trainee, 0);
    std::vector<at::Tensor> before;
    for (const auto& parameter : trainee.map.all()) {
      before.push_back(parameter->value.detach().clone());
    }
    for (const OwnedState& state : trainee.optimizer.owned_state()) {
      before.insert(before.end(), {state.master.clone(), state.exp_avg.clone(), state.exp_avg_sq.clone()});
    }
    // A replicated parameter on the last rank; an expert that one rank alone holds.
    for (const auto& [name, bad_rank] :
         {std::pair{"norm.weight", trainee.ranks - 1}, {"wide.experts.weight", 0}}) {
      trainee.add_gradients(1);
      if (trainee.rank == bad_rank) {
        const auto parameter = trainee.map.find(name);
        at::Tensor spoiled = at::zeros_like(parameter->grad.buffer());
        spoiled.view({-1})[spoiled.numel() - 1] = std::numeric_limits<double>::infinity();
        parameter->grad.add(spoiled);
      }
      const UpdateResult result = trainee.optimizer.step({.lr = 0.1, .gradient_scale = 1.0});
      EXPECT_TRUE(result.skipped);
      EXPECT_FALSE(std::isfinite(result.grad_norm));
      EXPECT_EQ(trainee.optimizer.updates(), 1);
    }
    std::size_t i = 0;
    for (const auto& parameter : trainee.map.all()) {
      EXPECT_TRUE(parameter->value.equal(before[i++])) << parameter->name;
    }
    for (const OwnedState& state : trainee.optimizer.owned_state()) {
      EXPECT_TRUE(state.master.equal(before[i++]));
      EXPECT_TRUE(state.exp_avg.equal(before[i++]));
      EXPECT_TRUE(state.exp_avg_sq.equal(before[i++]));
    }
  }
}

TEST_P(ShardedOptimizerMpi, LoadedStateGoesOnBitForBit) {
  const auto [zero, bucket] = GetParam();
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    Trainee first(options_of(zero, bucket), type);
    run_step(first, 0);
    run_step(first, 1);
    Trainee second(options_of(zero, bucket), type);
    const std::vector<OwnedState> from = first.optimizer.owned_state();
    const std::vector<OwnedState> to = second.optimizer.owned_state();
    ASSERT_EQ(from.size(), to.size());
    for (std::size_t i = 0; i < from.size(); ++i) {
      const at::NoGradGuard no_grad;
      to[i].master.copy_(from[i].master);
      to[i].exp_avg.copy_(from[i].exp_avg);
      to[i].exp_avg_sq.copy_(from[i].exp_avg_sq);
    }
    second.optimizer.set_updates(first.optimizer.updates());
    second.optimizer.publish_master();
    for (std::size_t i = 0; i < first.model.size(); ++i) {
      EXPECT_TRUE(first.map.all()[i]->value.equal(second.map.all()[i]->value)) << first.model[i].name;
    }
    run_step(first, 2);
    run_step(second, 2);
    for (std::size_t i = 0; i < first.model.size(); ++i) {
      EXPECT_TRUE(first.map.all()[i]->value.equal(second.map.all()[i]->value)) << first.model[i].name;
    }
  }
}

// Masters of 16-bit parameters follow the f32 run; the parameters are their rounding, on every holder.
TEST_P(ShardedOptimizerMpi, SixteenBitParametersAreRoundedMasters) {
  const auto [zero, bucket] = GetParam();
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    const OptimOptions options = options_of(zero, bucket);
    Trainee trainee(options, type);
    DenseReference reference(trainee.model, trainee.ranks, options, type);  // starts from the rounded values
    for (std::int64_t step = 0; step < 3; ++step) {
      const UpdateResult result = run_step(trainee, step, 65536.0);  // a loss scale, exact in binary
      const double norm = reference.step(step, lr_of(step), scale_of(step));
      EXPECT_NEAR(result.grad_norm, norm, 1e-12 * norm);
    }
    for (const OwnedState& state : trainee.optimizer.owned_state()) {
      EXPECT_EQ(state.master.scalar_type(), at::kFloat);
      const std::size_t i = trainee.index_of(*state.parameter);
      EXPECT_LE(difference(state.master, state.parameter->shard, state.first, reference.value(i)), 2e-6);
      const at::Tensor value = state.parameter->value.detach().view({-1}).narrow(0, state.first, state.count);
      EXPECT_TRUE(value.equal(state.master.to(type))) << state.parameter->name;
    }
    const double rounding = type == at::kBFloat16 ? std::ldexp(1.0, -8) : std::ldexp(1.0, -11);
    for (std::size_t i = 0; i < trainee.model.size(); ++i) {
      const parallel::Parameter& parameter = *trainee.map.all()[i];
      EXPECT_LE(difference(parameter.value, parameter.shard, 0, reference.value(i)), 1.01 * rounding);
    }
  }
}

// Elements that this rank's groups move, padding counted: by kind, the parts of a group that are not its own.
std::map<parallel::ParameterKind, std::int64_t> elements_for_others(const Trainee& trainee) {
  std::map<std::tuple<std::vector<int>, parallel::ParameterKind, parallel::DecayGroup>,
           std::vector<std::int64_t>>
      groups;
  for (const FakeParameter& parameter : trainee.model) {
    std::vector<int> holders;
    for (int rank = 0; rank < trainee.ranks; ++rank) {
      if (parameter.slice(rank) == parameter.slice(trainee.rank)) {
        holders.push_back(rank);
      }
    }
    groups[{holders, parameter.kind, parameter.decay}].push_back(parameter.slice(trainee.rank).local_numel());
  }
  std::map<parallel::ParameterKind, std::int64_t> elements;
  for (const auto& [key, numels] : groups) {
    const auto size = static_cast<std::int64_t>(std::get<0>(key).size());
    std::int64_t blocks = 0;
    for (const std::int64_t numel : numels) {
      blocks += (numel + 127) / 128;
    }
    const std::int64_t total = (blocks + size - 1) / size * size * 128;
    elements[std::get<1>(key)] += total / size * (size - 1);
  }
  return elements;
}

TEST_P(ShardedOptimizerMpi, BytesFollowTheFormula) {
  const auto [zero, bucket] = GetParam();
  for (const auto& [type, value_bytes] :
       {std::pair<at::ScalarType, std::int64_t>{at::kFloat, 4}, {at::kBFloat16, 2}}) {
    Trainee trainee(options_of(zero, bucket), type);
    std::map<parallel::ParameterKind, std::int64_t> elements = elements_for_others(trainee);
    parallel::TrafficCounters& traffic = trainee.grid.role().traffic();
    traffic.reset();
    run_step(trainee, 0);
    const std::int64_t passes = zero == 1 ? 1 : 2;  // an all-reduce is two of them
    const std::int64_t dense = elements[parallel::ParameterKind::dense];
    const std::int64_t expert = elements[parallel::ParameterKind::expert];
    EXPECT_EQ(traffic.bytes(parallel::Traffic::grad_dense), passes * dense * 4);
    EXPECT_EQ(traffic.bytes(parallel::Traffic::grad_expert), passes * expert * 4);
    EXPECT_EQ(traffic.bytes(parallel::Traffic::param_gather), zero == 1 ? (dense + expert) * value_bytes : 0);
    if (trainee.ranks == 1) {
      EXPECT_EQ(dense + expert, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(ZeroAndBuckets, ShardedOptimizerMpi,
                         ::testing::Combine(::testing::Values(0, 1), ::testing::Values(1, 1000, 8 << 20)));

}  // namespace
}  // namespace athanor::optim
