#include "train/bench_dispatch.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/mpi_test.hpp"

namespace athanor::train {
namespace {

using base::ComputeType;
using base::WireType;
using tests::world;

BenchDispatchOptions small_options() {
  BenchDispatchOptions options;
  options.dims = {.pp = 1, .dp = world().size(), .cp = 1, .tp = 1, .ep = world().size()};
  options.tokens = 24;
  options.hidden = 130;  // a block of 128 and a rest
  options.experts = 8;
  options.top_k = 3;
  options.warmup_steps = 0;
  options.rounds = 2;
  options.steps_per_round = 1;
  return options;
}

TEST(BenchDispatch, CountsTheBytesOfTheFormulaForEveryRoutingAndWire) {
  for (const ComputeType compute :
       {ComputeType::f32, ComputeType::bf16, ComputeType::fp16, ComputeType::f64}) {
    BenchDispatchOptions options = small_options();
    options.compute = compute;
    const BenchDispatchResult result = bench_dispatch(options, world());
    ASSERT_EQ(result.routings.size(), 2u);
    EXPECT_LT(result.routings[0].expert_use_std, result.routings[1].expert_use_std) << "uniform, skewed";
    EXPECT_GE(result.cases.size(), 2u);
    for (const DispatchCase& measured : result.cases) {
      EXPECT_TRUE(measured.agrees()) << measured.routing << " " << static_cast<int>(measured.dispatch) << ": "
                                     << measured.dispatch_bytes << " and " << measured.dispatch_formula
                                     << ", " << measured.combine_bytes << " and " << measured.combine_formula;
      EXPECT_GT(measured.tokens_per_s.median, 0.0);
      if (world().size() > 1) {
        EXPECT_GT(measured.dispatch_bytes, 0);
      }
    }
  }
}

// Two groups with all experts each: nothing is sent from one to the other.
TEST(BenchDispatch, GroupsOfExpertsExchangeAmongThemselves) {
  BenchDispatchOptions options = small_options();
  options.dims.ep = std::max(world().size() / 2, 1);
  for (const DispatchCase& measured : bench_dispatch(options, world()).cases) {
    EXPECT_TRUE(measured.agrees()) << measured.routing;
  }
}

// The bounds that the page states, at the bench shape: by the formula, for which the counters stand above.
TEST(BenchDispatch, Fp8TakesLittleMoreThanAQuarter) {
  const std::int64_t rows = 8192;
  const double f32 = static_cast<double>(row_bytes_of_step(rows, 256, WireType::full, ComputeType::f32));
  const double fp8 = static_cast<double>(row_bytes_of_step(rows, 256, WireType::fp8, ComputeType::f32));
  const double bf16 = static_cast<double>(row_bytes_of_step(rows, 256, WireType::bf16, ComputeType::f32));
  EXPECT_EQ(f32, 2.0 * 8192 * 1024);
  EXPECT_LE(fp8 / f32, 0.26);
  EXPECT_LE((fp8 + bf16) / (2 * f32), 0.38);
}

}  // namespace
}  // namespace athanor::train
