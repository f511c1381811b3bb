// When a key is run as it is, recorded, or replayed.
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "device/availability.hpp"
#include "device/graph.hpp"

namespace athanor::device {
namespace {

TEST(GraphPlan, WarmsUpThenRecordsThenReplays) {
  GraphPlan plan({.warm_up_runs = 2, .most_graphs = 4}, true);
  const ShapeKey key = {8, 256};
  EXPECT_EQ(plan.next(key), GraphRun::plain_warm_up);
  EXPECT_EQ(plan.next(key), GraphRun::plain_warm_up);
  EXPECT_EQ(plan.next(key), GraphRun::recorded);
  EXPECT_EQ(plan.next(key), GraphRun::replayed);
  EXPECT_EQ(plan.next(key), GraphRun::replayed);
  EXPECT_EQ(plan.next({8, 257}), GraphRun::plain_warm_up);  // another shape starts anew
  EXPECT_EQ(plan.next(key), GraphRun::replayed);
}

TEST(GraphPlan, KeepsToItsNumberOfGraphsAndSaysSo) {
  GraphPlan plan({.warm_up_runs = 0, .most_graphs = 1}, true);
  EXPECT_EQ(plan.next({1}), GraphRun::recorded);
  EXPECT_EQ(plan.next({2}), GraphRun::plain_full);
  EXPECT_EQ(plan.next({2}), GraphRun::plain_full);
  EXPECT_EQ(plan.next({1}), GraphRun::replayed);
}

TEST(GraphPlan, WithoutSupportEveryRunIsPlain) {
  GraphPlan plan({.warm_up_runs = 0, .most_graphs = 1}, false);
  EXPECT_EQ(plan.next({1}), GraphRun::plain_unsupported);
  EXPECT_EQ(plan.next({1}), GraphRun::plain_unsupported);
}

TEST(GraphCache, WithoutCudaRunsTheWorkAndSaysHow) {
  if (compiled_with_cuda()) {
    GTEST_SKIP() << "this is a build with CUDA";
  }
  GraphCache cache;
  int runs = 0;
  const Stream stream;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(cache.run({1}, stream, [&] { ++runs; }), GraphRun::plain_unsupported);
  }
  EXPECT_EQ(runs, 3);
  EXPECT_EQ(cache.counts().at(GraphRun::plain_unsupported), 3);
  EXPECT_THROW(Graph::record(stream, {1}, [] {}), base::DeviceError);
}

TEST(GraphCache, AnErrorOfTheWorkComesThrough) {
  if (compiled_with_cuda()) {
    GTEST_SKIP() << "this is a build with CUDA";
  }
  GraphCache cache;
  EXPECT_THROW(cache.run({1}, Stream(), [] { throw base::InternalError("no"); }), base::InternalError);
  EXPECT_TRUE(cache.counts().empty());
}

}  // namespace
}  // namespace athanor::device
