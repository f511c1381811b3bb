#include "optim/lr_schedule.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "base/error.hpp"

namespace athanor::optim {
namespace {

OptimOptions options_of(ScheduleKind kind, std::int64_t warmup) {
  OptimOptions options;
  options.lr = 1.0;
  options.min_lr = 0.1;
  options.warmup_steps = warmup;
  options.schedule = kind;
  return options;
}

TEST(LrSchedule, WarmUpStartsAboveZeroAndEndsAtLr) {
  for (const auto kind :
       {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine, ScheduleKind::wsd}) {
    const OptimOptions options = options_of(kind, 4);
    EXPECT_DOUBLE_EQ(learning_rate(options, 0, 100), 0.25);
    EXPECT_DOUBLE_EQ(learning_rate(options, 1, 100), 0.5);
    EXPECT_DOUBLE_EQ(learning_rate(options, 3, 100), 1.0);
    EXPECT_DOUBLE_EQ(learning_rate(options, 4, 100), 1.0);
  }
}

TEST(LrSchedule, WithoutWarmUpTheFirstUpdateRunsAtLr) {
  for (const auto kind :
       {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine, ScheduleKind::wsd}) {
    EXPECT_DOUBLE_EQ(learning_rate(options_of(kind, 0), 0, 10), 1.0);
    EXPECT_DOUBLE_EQ(learning_rate(options_of(kind, 0), 0, 1), 1.0);
  }
}

TEST(LrSchedule, ConstantStays) {
  const OptimOptions options = options_of(ScheduleKind::constant, 2);
  for (const std::int64_t step : {2, 50, 99, 100, 1000}) {
    EXPECT_DOUBLE_EQ(learning_rate(options, step, 100), 1.0);
  }
}

TEST(LrSchedule, LinearIsHalfwayInTheMiddleAndWouldEndAtTheLastStepPlusOne) {
  const OptimOptions options = options_of(ScheduleKind::linear, 10);
  EXPECT_DOUBLE_EQ(learning_rate(options, 60, 110), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(options, 109, 110), 0.1 + 0.9 / 100.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 110, 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(options, 5000, 110), 0.1);
}

TEST(LrSchedule, CosineFollowsHalfAPeriod) {
  const OptimOptions options = options_of(ScheduleKind::cosine, 10);
  EXPECT_DOUBLE_EQ(learning_rate(options, 35, 110), 0.1 + 0.45 * (1.0 + std::sqrt(0.5)));
  EXPECT_DOUBLE_EQ(learning_rate(options, 60, 110), 0.55);
  EXPECT_NEAR(learning_rate(options, 85, 110), 0.1 + 0.45 * (1.0 - std::sqrt(0.5)), 1e-15);
  EXPECT_GT(learning_rate(options, 109, 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(options, 110, 110), 0.1);
}

TEST(LrSchedule, WsdDecaysOverTheLastFifth) {
  const OptimOptions options = options_of(ScheduleKind::wsd, 10);
  EXPECT_DOUBLE_EQ(learning_rate(options, 79, 100), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 80, 100), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 81, 100), 1.0 - 0.9 / 20.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 90, 100), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(options, 99, 100), 0.1 + 0.9 / 20.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 100, 100), 0.1);
  // 7 steps: the last ceil(7/5) = 2 decay.
  EXPECT_DOUBLE_EQ(learning_rate(options_of(ScheduleKind::wsd, 0), 5, 7), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(options_of(ScheduleKind::wsd, 0), 6, 7), 0.55);
}

TEST(LrSchedule, WarmUpGoesBeforeTheDecay) {
  // Warm-up reaches into what would be wsd's decay, or beyond the end of the run.
  const OptimOptions options = options_of(ScheduleKind::wsd, 90);
  EXPECT_DOUBLE_EQ(learning_rate(options, 85, 100), 86.0 / 90.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 95, 100), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(options_of(ScheduleKind::cosine, 200), 99, 100), 0.5);
}

TEST(OptimOptions, DefaultsAreLegal) {
  EXPECT_NO_THROW(validate(OptimOptions{}));
}

TEST(OptimOptions, IllegalValuesAreRefusedByName) {
  const auto message = [](void (*change)(OptimOptions&)) {
    OptimOptions options;
    change(options);
    try {
      validate(options);
    } catch (const base::ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("not refused");
  };
  using Options = OptimOptions;
  EXPECT_NE(message([](Options& o) { o.lr = -1.0; }).find("optim.lr=-1"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.lr = std::nan(""); }).find("optim.lr=nan"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.min_lr = 1.0; }).find("optim.min_lr=1"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.beta1 = 1.0; }).find("optim.beta1=1"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.beta2 = -0.5; }).find("optim.beta2=-0.5"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.eps = 0.0; }).find("optim.eps=0"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.weight_decay = -0.1; }).find("optim.weight_decay=-0.1"),
            std::string::npos);
  EXPECT_NE(message([](Options& o) { o.warmup_steps = -1; }).find("optim.warmup_steps=-1"),
            std::string::npos);
  EXPECT_NE(message([](Options& o) { o.clip = -1.0; }).find("optim.clip=-1"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.zero = 2; }).find("optim.zero=2"), std::string::npos);
  EXPECT_NE(message([](Options& o) { o.max_skips = 0; }).find("optim.max_skips=0"), std::string::npos);
}

TEST(OptimOptions, ConstantScheduleDoesNotUseMinLr) {
  OptimOptions options;
  options.schedule = ScheduleKind::constant;
  options.lr = 1e-5;
  EXPECT_NO_THROW(validate(options));
}

}  // namespace
}  // namespace athanor::optim
