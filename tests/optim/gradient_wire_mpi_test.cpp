// Gradients through bf16 and FP8 between ranks: what arrives, what is counted, what stops a step, what error
// feedback keeps.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/fp8.hpp"
#include "optim/fake_model.hpp"
#include "optim/gradient_reducer.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::optim {
namespace {

using athanor::tests::world;

const std::vector<std::int64_t> numels = {1000, 0, 128, 1, 40000, 77};

/// Normal numbers that any rank can make for any other.
at::Tensor contribution(int rank, std::int64_t numel, std::int64_t step) {
  const at::Tensor index = at::arange(numel, at::kDouble) + 1000.0 * rank + 7.0 * static_cast<double>(step);
  return (at::sin(index * 1.7) * at::exp(at::sin(index * 0.001) * 6.0)).to(at::kFloat);
}

void fill(const GradientReducer& reducer, const FlatLayout& layout, std::int64_t step) {
  for (std::size_t i = 0; i < numels.size(); ++i) {
    at::Tensor part = reducer.flat().narrow(0, layout.offset(i), numels[i]);
    part.copy_(contribution(world().rank(), numels[i], step));
  }
}

/// What a rank's flat storage becomes on its way: one block after another, without buckets or ranks.
at::Tensor rounded(const at::Tensor& flat, const GradientWire& wire) {
  if (wire.type != base::WireType::fp8) {
    return wire.type == base::WireType::bf16 ? flat.to(at::kBFloat16).to(at::kFloat) : flat;
  }
  const auto rows = kernels::Fp8Rows::apart(flat.numel() / block_elements, block_elements);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(flat.numel()));
  std::vector<float> scales(static_cast<std::size_t>(rows.rows));
  kernels::Fp8Counts counts;
  kernels::cpu::quantize_fp8_blocks(flat.const_data_ptr<float>(), rows, wire.fp8_format, codes.data(),
                                    scales.data(), counts);
  at::Tensor back = at::empty_like(flat);
  kernels::cpu::dequantize_fp8_blocks(codes.data(), scales.data(), rows, wire.fp8_format,
                                      back.mutable_data_ptr<float>());
  return back;
}

std::vector<GradientWire> all_wires() {
  using base::Fp8Format;
  using base::WireType;
  return {
      {WireType::full}, {WireType::bf16}, {WireType::fp8, Fp8Format::e4m3}, {WireType::fp8, Fp8Format::e5m2}};
}

/// The shard's elements in the order of the flat storage's buckets.
at::Tensor own_part(const at::Tensor& flat, const FlatLayout& layout) {
  std::vector<at::Tensor> parts;
  for (const FlatLayout::Range& range : layout.owned_by(world().rank())) {
    parts.push_back(flat.narrow(0, range.first, range.count));
  }
  return at::cat(parts);
}

TEST(GradientWire, EveryContributionIsRoundedOnceAndAddedInRankOrder) {
  for (const std::int64_t bucket : {std::int64_t{1}, std::int64_t{3000}, std::int64_t{8} << 20}) {
    const FlatLayout layout(numels, world().size(), bucket);
    for (const GradientWire& wire : all_wires()) {
      GradientReducer reducer(layout, world(), at::kFloat, parallel::Traffic::grad_dense, wire);
      fill(reducer, layout, 0);
      reducer.reduce_scatter();
      at::Tensor expected = at::zeros({layout.total()}, at::kFloat);
      for (int rank = 0; rank < world().size(); ++rank) {
        at::Tensor flat = at::zeros({layout.total()}, at::kFloat);
        for (std::size_t i = 0; i < numels.size(); ++i) {
          flat.narrow(0, layout.offset(i), numels[i]).copy_(contribution(rank, numels[i], 0));
        }
        expected += world().size() == 1 ? flat : rounded(flat, wire);
      }
      const at::Tensor own = own_part(expected, layout);
      EXPECT_LE((reducer.shard() - own).abs().max().item<double>(), 1e-6 * own.abs().max().item<double>());
    }
  }
}

TEST(GradientWire, BytesAreTheFormulas) {
  const FlatLayout layout(numels, world().size(), 5000);
  const std::int64_t others = layout.total() / world().size() * (world().size() - 1);
  for (const auto purpose : {parallel::Traffic::grad_dense, parallel::Traffic::grad_expert}) {
    for (const GradientWire& wire : all_wires()) {
      GradientReducer reducer(layout, world(), at::kFloat, purpose, wire);
      fill(reducer, layout, 0);
      world().traffic().reset();
      reducer.reduce_scatter();
      const std::int64_t bytes = world().traffic().bytes(purpose);
      const std::int64_t expected = wire.type == base::WireType::full   ? 4 * others
                                    : wire.type == base::WireType::bf16 ? 2 * others
                                                                        : others + others / 128 * 4;
      EXPECT_EQ(bytes, expected);
      if (wire.type == base::WireType::fp8) {
        EXPECT_LE(static_cast<double>(bytes), 0.27 * 4.0 * static_cast<double>(others));
      }
    }
  }
}

TEST(GradientWire, BitsDoNotDependOnBuckets) {
  // 40000 elements are several pieces of the smallest bucket and one of the largest.
  for (const GradientWire& wire : all_wires()) {
    std::vector<at::Tensor> sums;
    for (const std::int64_t bucket : {std::int64_t{1}, std::int64_t{8} << 20}) {
      const FlatLayout layout(numels, world().size(), bucket);
      GradientReducer reducer(layout, world(), at::kFloat, parallel::Traffic::grad_dense, wire);
      fill(reducer, layout, 0);
      reducer.reduce_scatter();
      at::Tensor flat = at::zeros({layout.total()}, at::kFloat);
      std::int64_t at = 0;
      for (const FlatLayout::Range& range : layout.owned_by(world().rank())) {
        flat.narrow(0, range.first, range.count).copy_(reducer.shard().narrow(0, at, range.count));
        at += range.count;
      }
      parallel::all_reduce_(flat, parallel::ReduceOp::sum, world(), parallel::Traffic::other);
      sums.push_back(flat);
    }
    EXPECT_TRUE(sums[0].equal(sums[1]));
  }
}

TEST(GradientWire, LossesAreCounted) {
  const FlatLayout layout({256}, world().size(), 8 << 20);
  GradientReducer reducer(layout, world(), at::kFloat, parallel::Traffic::grad_dense, {base::WireType::fp8});
  reducer.flat()[0] = 1.0;
  reducer.flat()[1] = 1e-7;  // below half of 1 / 448 / 2^9
  reducer.flat()[130] = std::numeric_limits<float>::quiet_NaN();
  world().traffic().reset();
  reducer.reduce_scatter();
  const std::int64_t once = world().size() == 1 ? 0 : 1;
  EXPECT_EQ(world().traffic().losses().underflow, once);
  EXPECT_EQ(world().traffic().losses().nonfinite, once);
}

// What was sent in all steps and what is still owed is what the gradients were.
TEST(GradientWire, ErrorFeedbackOwesExactlyWhatWasRounded) {
  for (GradientWire wire : all_wires()) {
    if (wire.type == base::WireType::full) {
      continue;
    }
    wire.error_feedback = true;
    const FlatLayout layout(numels, world().size(), 9000);
    GradientReducer reducer(layout, world(), at::kFloat, parallel::Traffic::grad_dense, wire);
    at::Tensor gradients = at::zeros({layout.total()}, at::kDouble);
    at::Tensor sent = at::zeros({layout.shard_total()}, at::kDouble);
    double without = 0.0;
    for (std::int64_t step = 0; step < 6; ++step) {
      const double gradient_scale = step % 2 == 0 ? 1.0 : 0.25;  // as the loss scale or the labels change
      fill(reducer, layout, step);
      reducer.flat().div_(gradient_scale);
      gradients += reducer.flat().to(at::kDouble) * gradient_scale;
      const at::Tensor own = rounded(reducer.flat(), wire).to(at::kDouble) - reducer.flat().to(at::kDouble);
      without += own.norm().item<double>();
      reducer.reduce_scatter(gradient_scale);
      sent += reducer.shard().to(at::kDouble) * gradient_scale;
      reducer.finish_step(false, gradient_scale);
    }
    if (world().size() == 1) {
      EXPECT_FALSE(reducer.residual().defined());
      continue;
    }
    at::Tensor expected = gradients - reducer.residual().to(at::kDouble);
    parallel::all_reduce_(expected, parallel::ReduceOp::sum, world(), parallel::Traffic::other);
    const at::Tensor own = own_part(expected, layout);
    EXPECT_LE((sent - own).abs().max().item<double>(), 1e-5 * own.abs().max().item<double>());
    EXPECT_GT(reducer.residual().norm().item<double>(), 0.0);
    EXPECT_LT(reducer.residual().norm().item<double>(), 0.7 * without);  // it does not pile up
  }
}

TEST(GradientWire, ASkippedStepLeavesTheResidualAndNoNanBehind) {
  GradientWire wire{base::WireType::fp8, base::Fp8Format::e4m3, true};
  const FlatLayout layout(numels, world().size(), 9000);
  GradientReducer reducer(layout, world(), at::kFloat, parallel::Traffic::grad_dense, wire);
  fill(reducer, layout, 0);
  reducer.reduce_scatter(0.5);
  reducer.finish_step(false, 0.5);
  if (world().size() == 1) {
    return;
  }
  const at::Tensor before = reducer.residual().clone();
  fill(reducer, layout, 1);
  reducer.flat()[3] = std::numeric_limits<float>::infinity();
  reducer.reduce_scatter(0.5);
  reducer.finish_step(true, 0.5);
  EXPECT_TRUE(reducer.residual().equal(before));
  fill(reducer, layout, 2);
  reducer.reduce_scatter(0.5);
  EXPECT_TRUE(at::isfinite(reducer.shard()).all().item<bool>());
}

// The optimizer over all kinds of slices.

struct Trainee {
  explicit Trainee(const GradientWire& wire, at::ScalarType type = at::kFloat, std::int64_t bucket = 1000)
      : ranks(world().size()),
        grid(parallel::ParallelDims{.dp = ranks}, world()),
        model(tests::fake_parameters(ranks)),
        map(tests::make_map(model, world().rank(), type)),
        optimizer(options_of(bucket), wire, map, grid) {}
  static OptimOptions options_of(std::int64_t bucket) {
    OptimOptions options;
    options.bucket_elements = bucket;
    return options;
  }
  UpdateResult step(std::int64_t number, int bad_rank = -1, float bad = 0.0f) {
    optimizer.begin_step();
    for (std::size_t i = 0; i < model.size(); ++i) {
      at::Tensor gradient = tests::local_gradient(model[i], i, world().rank(), number, at::kFloat);
      if (world().rank() == bad_rank && model[i].name == "big.weight") {
        gradient.view({-1})[5] = bad;
      }
      map.all()[i]->grad.add(gradient);
    }
    return optimizer.step({.lr = 1e-2, .gradient_scale = 1.0 / 64.0});
  }

  int ranks;
  parallel::ProcessGrid grid;
  std::vector<tests::FakeParameter> model;
  parallel::ParameterMap map;
  ShardedOptimizer optimizer;
};

TEST(GradientWireOptimizer, FollowsTheFullWire) {
  for (const GradientWire& wire : all_wires()) {
    Trainee full({}), rounded_wire(wire);
    const double allowed = wire.fp8_format == base::Fp8Format::e5m2 ? 4e-3 : 2e-3;  // of 3e-2
    for (std::int64_t step = 0; step < 3; ++step) {
      const double norm = full.step(step).grad_norm;
      EXPECT_NEAR(rounded_wire.step(step).grad_norm, norm, 0.02 * norm);
    }
    for (std::size_t i = 0; i < full.model.size(); ++i) {
      const at::Tensor a = full.map.all()[i]->value.detach();
      const at::Tensor b = rounded_wire.map.all()[i]->value.detach();
      const bool is_exact = wire.type == base::WireType::full || world().size() == 1;
      // Where the ranks' contributions cancel, AdamW's step may turn round: the mean tells.
      const at::Tensor difference = (a - b).abs();
      EXPECT_TRUE(a.numel() == 0 || (is_exact ? a.equal(b) : difference.mean().item<double>() <= allowed))
          << full.model[i].name << " differs by " << difference.mean().item<double>();
    }
  }
}

TEST(GradientWireOptimizer, NonFiniteGradientsStopTheStepOnAllRanks) {
  for (const bool feedback : {false, true}) {
    for (GradientWire wire : all_wires()) {
      wire.error_feedback = feedback && wire.type != base::WireType::full;
      Trainee trainee(wire, at::kBFloat16);
      EXPECT_FALSE(trainee.step(0).skipped);
      std::vector<at::Tensor> before;
      for (const auto& parameter : trainee.map.all()) {
        before.push_back(parameter->value.detach().clone());
      }
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()}) {
        EXPECT_TRUE(trainee.step(1, world().size() - 1, bad).skipped);
        for (std::size_t i = 0; i < before.size(); ++i) {
          EXPECT_TRUE(trainee.map.all()[i]->value.detach().equal(before[i]));
        }
      }
      EXPECT_EQ(trainee.optimizer.updates(), 1);
      EXPECT_FALSE(trainee.step(1).skipped);
    }
  }
}

TEST(GradientWireOptimizer, ResidualsAreOfSlicesThatOthersHoldToo) {
  Trainee without({base::WireType::fp8});
  EXPECT_TRUE(without.optimizer.residual_state().empty());
  Trainee trainee({base::WireType::fp8, base::Fp8Format::e4m3, true});
  trainee.step(0);
  for (const ResidualState& state : trainee.optimizer.residual_state()) {
    EXPECT_EQ(state.residual.numel(), state.parameter->shard.local_numel());
    EXPECT_GE(state.holder, 0);
    EXPECT_LT(state.holder, world().size());
  }
  EXPECT_EQ(trainee.optimizer.residual_state().empty(), world().size() == 1);
}

}  // namespace
}  // namespace athanor::optim
