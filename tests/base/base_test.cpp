#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "base/memory.hpp"
#include "base/philox.hpp"
#include "base/stopwatch.hpp"

namespace athanor::base {
namespace {

TEST(Error, CarriesItsExitCodeAndMessage) {
  EXPECT_EQ(ConfigError("x").exit_code(), ExitCode::usage);
  EXPECT_EQ(DataError("x").exit_code(), ExitCode::bad_data);
  EXPECT_EQ(CheckpointError("x").exit_code(), ExitCode::bad_data);
  EXPECT_EQ(MissingInputError("x").exit_code(), ExitCode::missing_input);
  EXPECT_EQ(NumericError("x").exit_code(), ExitCode::internal);
  EXPECT_EQ(CannotCreateError("x").exit_code(), ExitCode::cannot_create);
  EXPECT_EQ(IoError("x").exit_code(), ExitCode::io);
  EXPECT_STREQ(ConfigError("moe.top_k is {} (at most {})", 9, 8).what(), "moe.top_k is 9 (at most 8)");
}

TEST(Error, CheckNamesConditionAndMessage) {
  const int value = 3;
  EXPECT_NO_THROW(ATHANOR_CHECK(value == 3, "never"));
  try {
    ATHANOR_CHECK(value == 4, "value is {}", value);
    FAIL() << "no exception";
  } catch (const InternalError& error) {
    EXPECT_NE(std::string(error.what()).find("value is 3 (value == 4 is false)"), std::string::npos)
        << error.what();
  }
}

TEST(CheckedCast, ThrowsInsteadOfWrapping) {
  EXPECT_EQ(checked_cast<int>(std::int64_t{2147483647}, "count"), 2147483647);
  EXPECT_THROW(checked_cast<int>(std::int64_t{2147483648}, "count"), InternalError);
  EXPECT_THROW(checked_cast<std::uint32_t>(-1, "count"), InternalError);
}

TEST(Hash, IsXxh3) {
  EXPECT_EQ(hash_string(""), 0x2D06800538D394C2ull);  // the published value of XXH3-64 of nothing
  EXPECT_NE(hash_string("a"), hash_string("b"));
  EXPECT_EQ(hash_bytes("abc", 3), hash_string("abc"));
}

// The known-answer test of the Philox authors for counter and key zero.
TEST(Philox, MatchesThePublishedVector) {
  const r123::Philox4x32 generator;
  const auto out = generator(r123::Philox4x32::ctr_type{{0, 0, 0, 0}}, r123::Philox4x32::key_type{{0, 0}});
  EXPECT_EQ(out[0], 0x6627e8d5u);
  EXPECT_EQ(out[1], 0xe169c58du);
  EXPECT_EQ(out[2], 0xbc57ac4cu);
  EXPECT_EQ(out[3], 0x9b00dbd8u);
}

TEST(Philox, NumbersDependOnlyOnWhatTheyAreFor) {
  const PhiloxStream a(1, RandomPurpose::dropout, "site");
  EXPECT_EQ(a.bits(5, 6), PhiloxStream(1, RandomPurpose::dropout, "site").bits(5, 6));
  EXPECT_NE(a.bits(5, 6), PhiloxStream(2, RandomPurpose::dropout, "site").bits(5, 6));
  EXPECT_NE(a.bits(5, 6), PhiloxStream(1, RandomPurpose::generation, "site").bits(5, 6));
  EXPECT_NE(a.bits(5, 6), PhiloxStream(1, RandomPurpose::dropout, "other").bits(5, 6));
  EXPECT_NE(a.bits(5, 6), a.bits(6, 5));
}

TEST(Philox, UniformAndNormalHaveTheirMoments) {
  const PhiloxStream stream(3, RandomPurpose::test, "moments");
  const int count = 200000;
  double uniform_sum = 0, normal_sum = 0, normal_squares = 0, lowest = 1, highest = 0;
  for (int i = 0; i < count; ++i) {
    const double u = stream.uniform(static_cast<std::uint64_t>(i));
    uniform_sum += u;
    lowest = std::min(lowest, u);
    highest = std::max(highest, u);
    const double n = stream.normal(static_cast<std::uint64_t>(i));
    normal_sum += n;
    normal_squares += n * n;
  }
  EXPECT_NEAR(uniform_sum / count, 0.5, 0.003);  // 4.6 standard errors
  EXPECT_GE(lowest, 0.0);
  EXPECT_LT(highest, 1.0);
  EXPECT_NEAR(normal_sum / count, 0.0, 0.01);
  EXPECT_NEAR(normal_squares / count, 1.0, 0.015);
}

TEST(Memory, ReportsPlausibleNumbers) {
  const std::int64_t before = peak_resident_bytes();
  EXPECT_GT(before, 1 << 20);
  std::vector<char> block(64 << 20, 1);
  EXPECT_GE(peak_resident_bytes(), before + (48 << 20)) << block[12345];
  EXPECT_GT(available_memory_bytes(), 16 << 20);
}

TEST(Log, OnceGoesToTheReportingRankAndLocalCarriesThePrefix) {
  const auto path = std::filesystem::temp_directory_path() / "athanor_log_test.txt";
  std::filesystem::remove(path);
  configure_log({true, "teacher rank 3", path.string(), LogLevel::info});
  log_info("step {}", 1);
  log_local(LogLevel::warning, "late");
  configure_log({false, "", path.string(), LogLevel::info});
  log_info("not printed");
  configure_log({});
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_NE(text.str().find("step 1"), std::string::npos);
  EXPECT_NE(text.str().find("teacher rank 3: late"), std::string::npos);
  EXPECT_EQ(text.str().find("not printed"), std::string::npos);
  EXPECT_THROW(configure_log({true, "", path.string() + "/log.txt", LogLevel::info}), CannotCreateError);
  std::filesystem::remove(path);
}

TEST(Stopwatch, ScopedTimerAdds) {
  double total = 1.0;
  { ScopedTimer timer(total); }
  EXPECT_GE(total, 1.0);
}

}  // namespace
}  // namespace athanor::base
