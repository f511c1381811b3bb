// The recorder of spans and the file that it becomes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "train/trace_file.hpp"
#include "train/trace_recorder.hpp"

namespace athanor::train {
namespace {

using base::ScopedSpan;
using base::Span;
using base::SpanKind;
using nlohmann::json;

void run_step(std::int64_t number) {
  const ScopedSpan step(Span{.kind = SpanKind::step, .name = "step", .number = number});
  const ScopedSpan phase(SpanKind::phase, "forward");
  const std::string group = "teacher.ep";  // gone when the events are read
  const ScopedSpan call(Span{.kind = SpanKind::collective,
                             .name = "all_to_all_v",
                             .group = group,
                             .bytes = 17,
                             .number = 10 * number,
                             .site = base::CallSite::current()});
}

std::vector<std::string> names_of(const TraceRecorder& recorder) {
  std::vector<std::string> names;
  for (const TraceEvent& event : recorder.events()) {
    names.emplace_back(event.name.data());
  }
  return names;
}

TEST(TraceRecorder, KeepsTheStepsItIsToldAndWhatComesBetween) {
  TraceRecorder recorder(100);
  const base::SpanObservation observation(recorder);
  recorder.set_steps(2, 3);
  for (std::int64_t step = 1; step <= 4; ++step) {
    const ScopedSpan data(SpanKind::wait, step == 2 ? "data before 2" : "data");
    run_step(step);
  }
  // The wait before step 4 begins while step 3 is the newest: it is kept; step 4 is not.
  EXPECT_EQ(names_of(recorder),
            (std::vector<std::string>{"all_to_all_v", "forward", "step", "data before 2", "all_to_all_v",
                                      "forward", "step", "data", "data"}));
  EXPECT_EQ(recorder.num_lost(), 0);
}

TEST(TraceRecorder, ASpanWhoseBeginItMissedIsLeftOut) {
  TraceRecorder recorder(100);
  std::optional<ScopedSpan> before(std::in_place, SpanKind::phase, "before");
  const base::SpanObservation observation(recorder);
  recorder.set_steps(1, 1);
  run_step(1);
  before.reset();
  EXPECT_EQ(names_of(recorder).size(), 3u);
  for (const std::string& name : names_of(recorder)) {
    EXPECT_NE(name, "before");
  }
}

TEST(TraceRecorder, ThreadsHaveRowsOfTheirOwnAndSpansNest) {
  TraceRecorder recorder(10000);
  {
    const base::SpanObservation observation(recorder);
    recorder.set_steps(1, 1);
    const ScopedSpan step(Span{.kind = SpanKind::step, .name = "step", .number = 1});
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([] {
        for (int j = 0; j < 100; ++j) {
          const ScopedSpan outer(SpanKind::io, "outer");
          const ScopedSpan inner(SpanKind::io, "inner");
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  }
  std::vector<std::vector<TraceEvent>> rows(5);
  for (const TraceEvent& event : recorder.events()) {
    rows.at(static_cast<std::size_t>(event.thread)).push_back(event);
  }
  ASSERT_EQ(rows[0].size(), 1u);  // the step
  for (std::size_t row = 1; row < rows.size(); ++row) {
    ASSERT_EQ(rows[row].size(), 200u);
    for (std::size_t i = 0; i < 200; i += 2) {
      EXPECT_STREQ(rows[row][i].name.data(), "inner");
      EXPECT_LE(rows[row][i + 1].begin_ns, rows[row][i].begin_ns);
      EXPECT_GE(rows[row][i + 1].end_ns, rows[row][i].end_ns);
    }
  }
}

TEST(TraceRecorder, CountsWhatFindsNoRoom) {
  TraceRecorder recorder(2);
  {
    const base::SpanObservation observation(recorder);
    recorder.set_steps(1, 2);
    run_step(1);
    run_step(2);
  }
  EXPECT_EQ(recorder.events().size(), 2u);
  EXPECT_EQ(recorder.num_lost(), 4);
}

TEST(TraceLines, NameGroupBytesNumberAndSite) {
  TraceRecorder recorder(100);
  {
    const base::SpanObservation observation(recorder);
    recorder.set_steps(1, 1);
    run_step(1);
    const ScopedSpan odd(SpanKind::compute, "a \"quoted\" name");
  }
  const std::vector<TraceEvent> events = recorder.events();
  const TraceProcess process{3, "teacher rank 1", events.front().begin_ns, 5000, 0};
  std::vector<json> lines;
  for (const std::string& line : trace_lines(process, events)) {
    lines.push_back(json::parse(line));
  }
  const json& call = lines.at(3);
  EXPECT_EQ(call["name"], "all_to_all_v");
  EXPECT_EQ(call["pid"], 3);
  EXPECT_DOUBLE_EQ(call["ts"].get<double>(), 5.0);  // on rank 0's clock
  EXPECT_EQ(call["args"]["group"], "teacher.ep");
  EXPECT_EQ(call["args"]["bytes"], 17);
  EXPECT_EQ(call["args"]["number"], 10);
  EXPECT_NE(call["args"]["site"].get<std::string>().find("trace_test.cpp:"), std::string::npos);
  EXPECT_EQ(lines.back()["name"], "a \"quoted\" name");
}

TEST(TraceLines, WhatIsUnderWayFromStartToEndIsDrawn) {
  TraceRecorder recorder(100);
  const auto mark = [](const char* name, std::int64_t number) {
    const ScopedSpan span(
        Span{.kind = SpanKind::collective, .name = name, .group = "g", .bytes = 8, .number = number});
  };
  {
    const base::SpanObservation observation(recorder);
    recorder.set_steps(1, 1);
    const ScopedSpan step(Span{.kind = SpanKind::step, .name = "step", .number = 1});
    mark("start_exchange", 1);
    mark("start_exchange", 2);
    mark("end_exchange", 2);
    mark("wait_exchange", 1);
    mark("start_exchange", 3);  // never ends
  }
  std::vector<json> transfers;
  for (const std::string& line : trace_lines({}, recorder.events())) {
    const json event = json::parse(line);
    if (event["ph"] == "b" || event["ph"] == "e") {
      transfers.push_back(event);
    }
  }
  ASSERT_EQ(transfers.size(), 4u);
  EXPECT_EQ(transfers[0]["name"], "exchange under way");
  EXPECT_EQ(transfers[0]["id"], "0/g/2");
  EXPECT_EQ(transfers[1]["id"], "0/g/2");
  EXPECT_LT(transfers[2]["ts"].get<double>(), transfers[3]["ts"].get<double>());
}

TEST(TraceFile, PartsBecomeOneFile) {
  std::string folder = (std::filesystem::temp_directory_path() / "athanor_trace_XXXXXX").string();
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  write_trace_part(folder + "/a", {R"({"a":1})", R"({"b":2})"});
  write_trace_part(folder + "/b", {});
  write_trace_part(folder + "/c", {R"({"c":3})"});
  merge_trace_parts({folder + "/a", folder + "/b", folder + "/c"}, folder + "/trace.json");
  std::ifstream file(folder + "/trace.json");
  const json trace = json::parse(file);
  EXPECT_EQ(trace["traceEvents"].size(), 3u);
  EXPECT_EQ(trace["traceEvents"][2]["c"], 3);
  EXPECT_FALSE(std::filesystem::exists(folder + "/a"));
  EXPECT_THROW(merge_trace_parts({folder + "/none"}, folder + "/x"), base::IoError);
  EXPECT_THROW(write_trace_part(folder + "/none/a", {}), base::IoError);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace athanor::train
