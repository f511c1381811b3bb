// Recorded spans as a Chrome trace, which chrome://tracing and Perfetto show.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/trace_recorder.hpp"

namespace athanor::train {

/// The process that recorded some events.
struct TraceProcess {
  int world_rank = 0;
  std::string name;             ///< "teacher rank 0"
  std::int64_t zero_ns = 0;     ///< time 0 of the trace on world rank 0's clock
  std::int64_t offset_ns = 0;   ///< what has to be added to this process's clock for world rank 0's
  std::int64_t lost_spans = 0;  ///< that found no room
};

/// One JSON object a line: the process's name, one row for each thread, each span as a complete event with
/// group, bytes, sequence number and call site, and as asynchronous events what is under way between a span
/// start_X and the span end_X or wait_X of the same group and number.
std::vector<std::string> trace_lines(const TraceProcess& process, const std::vector<TraceEvent>& events);

/// Writes the lines of one process to `path`. Throws IoError.
void write_trace_part(const std::string& path, const std::vector<std::string>& lines);
/// Joins such files into one trace at `path` and deletes them. Throws IoError.
void merge_trace_parts(const std::vector<std::string>& parts, const std::string& path);

}  // namespace athanor::train
