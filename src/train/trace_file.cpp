#include "train/trace_file.hpp"

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/error.hpp"

namespace athanor::train {
namespace {

using nlohmann::json;

const char* category(base::SpanKind kind) {
  switch (kind) {
    case base::SpanKind::step:
      return "step";
    case base::SpanKind::phase:
      return "phase";
    case base::SpanKind::compute:
      return "compute";
    case base::SpanKind::collective:
      return "collective";
    case base::SpanKind::wait:
      return "wait";
    case base::SpanKind::io:
      return "io";
  }
  return "";
}

// Without the folders above the sources, which differ between machines.
std::string_view short_path(std::string_view file) {
  const std::size_t place = file.rfind("/src/");
  return place == std::string_view::npos ? file : file.substr(place + 1);
}

double microseconds(const TraceProcess& process, std::int64_t time_ns) {
  return static_cast<double>(time_ns + process.offset_ns - process.zero_ns) * 1e-3;
}

json metadata(const char* what, const TraceProcess& process, json args) {
  return {{"ph", "M"}, {"name", what}, {"pid", process.world_rank}, {"args", std::move(args)}};
}

json args_of(const TraceEvent& event) {
  json args = json::object();
  if (event.group[0] != '\0') {
    args["group"] = event.group.data();
    args["bytes"] = event.bytes;
  }
  if (event.group[0] != '\0' || event.kind == base::SpanKind::step) {
    args["number"] = event.number;
  }
  if (event.file[0] != '\0') {
    args["site"] = std::string(short_path(event.file)) + ":" + std::to_string(event.line);
  }
  return args;
}

json complete_event(const TraceProcess& process, const TraceEvent& event) {
  return {{"ph", "X"},
          {"name", event.name.data()},
          {"cat", category(event.kind)},
          {"pid", process.world_rank},
          {"tid", event.thread},
          {"ts", microseconds(process, event.begin_ns)},
          {"dur", static_cast<double>(event.end_ns - event.begin_ns) * 1e-3},
          {"args", args_of(event)}};
}

/// "exchange" of start_exchange when `name` begins with `prefix`.
std::optional<std::string> without_prefix(std::string_view name, std::string_view prefix) {
  return name.starts_with(prefix) ? std::optional<std::string>(name.substr(prefix.size())) : std::nullopt;
}

// What is under way from a span start_X to the span end_X or wait_X of the same group and number.
void append_transfers(const TraceProcess& process, const std::vector<TraceEvent>& events,
                      std::vector<std::string>& lines) {
  std::map<std::tuple<std::string, std::string, std::int64_t>, const TraceEvent*> open;
  for (const TraceEvent& event : events) {
    const std::string group = event.group.data();
    if (const auto what = without_prefix(event.name.data(), "start_")) {
      open[{*what, group, event.number}] = &event;
      continue;
    }
    auto what = without_prefix(event.name.data(), "end_");
    what = what ? what : without_prefix(event.name.data(), "wait_");
    const auto found = what ? open.find({*what, group, event.number}) : open.end();
    if (found == open.end()) {
      continue;
    }
    const TraceEvent& start = *found->second;
    json line = {
        {"name", *what + " under way"},
        {"cat", "transfer"},
        {"pid", process.world_rank},
        {"tid", start.thread},
        {"id", std::to_string(process.world_rank) + "/" + group + "/" + std::to_string(event.number)}};
    line["ph"] = "b";
    line["ts"] = microseconds(process, start.begin_ns);
    line["args"] = args_of(start);
    lines.push_back(line.dump());
    line["ph"] = "e";
    line["ts"] = microseconds(process, event.end_ns);
    line.erase("args");
    lines.push_back(line.dump());
    open.erase(found);
  }
}

std::ofstream open_file(const std::string& path) {
  std::ofstream file(path, std::ios::trunc);
  if (!file) {
    throw base::IoError("cannot write the trace {} (train.trace asks for it) check the folder", path);
  }
  return file;
}

void check_written(std::ofstream& file, const std::string& path) {
  if (!file.flush()) {
    throw base::IoError("cannot write the trace {} (no space, or the folder is gone) free some space", path);
  }
}

}  // namespace

std::vector<std::string> trace_lines(const TraceProcess& process, const std::vector<TraceEvent>& events) {
  std::vector<std::string> lines;
  lines.push_back(metadata("process_name", process, {{"name", process.name}}).dump());
  lines.push_back(metadata("process_sort_index", process, {{"sort_index", process.world_rank}}).dump());
  int threads = 0;
  for (const TraceEvent& event : events) {
    threads = std::max(threads, event.thread + 1);
  }
  for (int thread = 0; thread < threads; ++thread) {
    json line =
        metadata("thread_name", process,
                 {{"name", thread == 0 ? std::string("training loop") : "thread " + std::to_string(thread)}});
    line["tid"] = thread;
    lines.push_back(line.dump());
  }
  if (process.lost_spans > 0) {
    lines.push_back(
        metadata("process_labels", process,
                 {{"labels", std::to_string(process.lost_spans) + " spans found no room in the trace"}})
            .dump());
  }
  for (const TraceEvent& event : events) {
    lines.push_back(complete_event(process, event).dump());
  }
  append_transfers(process, events, lines);
  return lines;
}

void write_trace_part(const std::string& path, const std::vector<std::string>& lines) {
  std::ofstream file = open_file(path);
  for (const std::string& line : lines) {
    file << line << '\n';
  }
  check_written(file, path);
}

void merge_trace_parts(const std::vector<std::string>& parts, const std::string& path) {
  std::ofstream file = open_file(path);
  file << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  const char* separator = "\n";
  for (const std::string& part : parts) {
    std::ifstream lines(part);
    if (!lines) {
      throw base::IoError("cannot read {} (a rank's part of the trace) put run.dir where all nodes see it",
                          part);
    }
    for (std::string line; std::getline(lines, line);) {
      file << separator << line;
      separator = ",\n";
    }
  }
  file << "\n]}\n";
  check_written(file, path);
  for (const std::string& part : parts) {
    std::filesystem::remove(part);
  }
}

}  // namespace athanor::train
