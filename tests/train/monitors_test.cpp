#include "train/monitors.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace athanor::train {
namespace {

MonitorOptions options() {
  MonitorOptions options;
  options.window = 4;
  options.repeat_every = 10;
  return options;
}

StepMetrics step(std::int64_t number, double use_std, double seconds) {
  StepMetrics metrics;
  metrics.step = number;
  metrics.expert_use_std = use_std;
  metrics.layers.resize(1);
  metrics.times.total_s = seconds;
  return metrics;
}

TEST(Monitors, FluctuationIsStdOverMean) {
  EXPECT_EQ(fluctuation({}), 0.0);
  EXPECT_EQ(fluctuation({3.0}), 0.0);
  EXPECT_DOUBLE_EQ(fluctuation({1.0, 3.0}), 0.5);
  EXPECT_DOUBLE_EQ(fluctuation({2.0, 2.0, 5.0, 5.0, 2.0, 2.0}), std::sqrt(2.0) / 3.0);
}

TEST(Monitors, PercentileIsAnObservedValue) {
  std::vector<double> values;
  for (int i = 100; i > 0; --i) {
    values.push_back(i);
  }
  EXPECT_EQ(percentile(values, 0.99), 99.0);
  EXPECT_EQ(percentile(values, 0.5), 50.0);
  EXPECT_EQ(percentile({7.0}, 0.99), 7.0);
  EXPECT_EQ(percentile({1.0, 9.0}, 0.99), 9.0);
}

TEST(Monitors, SayNothingBeforeTheirWindowsAreFull) {
  Monitors monitors(options());
  for (std::int64_t i = 1; i < 4; ++i) {
    StepMetrics metrics = step(i, 9.0, i == 1 ? 10.0 : 1.0);
    EXPECT_TRUE(monitors.note(metrics, {1.0, 9.0, 1.0}).empty());
    EXPECT_TRUE(metrics.monitors.empty());
  }
}

TEST(Monitors, SayWhatCrossesItsThresholdOnceAndAgainLater) {
  Monitors monitors(options());
  int lines = 0;
  for (std::int64_t i = 1; i <= 30; ++i) {
    StepMetrics metrics = step(i, 0.2, 1.0);
    for (const std::string& line : monitors.note(metrics, {2.0, 2.0, 2.0, 2.0})) {
      EXPECT_NE(line.find("above monitor.expert_use_std=0.15"), std::string::npos) << line;
      ++lines;
    }
  }
  EXPECT_EQ(lines, 3);  // steps 4, 14 and 24
}

TEST(Monitors, SayItAgainAfterItWasWell) {
  Monitors monitors(options());
  int lines = 0;
  for (std::int64_t i = 1; i <= 12; ++i) {
    StepMetrics metrics = step(i, i > 4 && i <= 8 ? 0.0 : 1.0, 1.0);
    lines += static_cast<int>(monitors.note(metrics, {}).size());
  }
  EXPECT_EQ(lines, 2);
}

TEST(Monitors, SeeLossesAndSlowSteps) {
  Monitors monitors(options());
  StepMetrics metrics;
  std::vector<std::string> lines;
  for (std::int64_t i = 1; i <= 4; ++i) {
    metrics = step(i, 0.0, i == 2 ? 3.0 : 1.0);
    lines = monitors.note(metrics, {1.0, 1.0, 5.0, 5.0});
  }
  EXPECT_DOUBLE_EQ(metrics.monitors.at("loss_fluctuation"), 2.0 / 3.0);
  EXPECT_EQ(metrics.monitors.at("step_time_p99_s"), 3.0);
  ASSERT_EQ(lines.size(), 1u);  // the losses were told of at once
  EXPECT_NE(lines[0].find("monitor.step_time_ratio=2"), std::string::npos) << lines[0];
}

TEST(Monitors, AThresholdOfZeroIsNeverCrossed) {
  MonitorOptions silent = options();
  silent.expert_use_std = silent.loss_fluctuation = silent.step_time_ratio = 0.0;
  Monitors monitors(silent);
  for (std::int64_t i = 1; i <= 20; ++i) {
    StepMetrics metrics = step(i, 9.0, i % 2 == 0 ? 9.0 : 1.0);
    EXPECT_TRUE(monitors.note(metrics, {1.0, 9.0, 1.0, 9.0}).empty());
  }
}

}  // namespace
}  // namespace athanor::train
