#include "checkpoint/detail/save_tasks.hpp"

#include <fmt/chrono.h>

#include <ctime>
#include <exception>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "checkpoint/detail/durable_files.hpp"

namespace athanor::checkpoint::detail {
namespace {

namespace fs = std::filesystem;

void check_space(const WriteTask& task) {
  const std::int64_t needed = with_margin(task.whole_bytes);
  // What other ranks have already reserved of this very checkpoint is not missing.
  const std::int64_t free = free_bytes(task.checkpoints_dir);
  const std::int64_t reserved = allocated_bytes(task.folder);
  if (free + reserved < needed) {
    throw base::IoError("{} has {} bytes free ({} bytes are needed for this checkpoint) free some space",
                        task.checkpoints_dir, free + reserved, needed);
  }
}

void write_part(WriteTask& task) {
  check_space(task);
  std::error_code error;
  fs::create_directory(task.folder, error);
  if (error) {
    throw base::IoError("cannot create {} ({}) check that the folder may be written", task.folder,
                        error.message());
  }
  base::fault_point("checkpoint.write", task.identity.rank);
  if (!task.slices.empty()) {
    WrittenShard shard = write_shard(task.folder, task.identity, task.slices);
    task.report.file = std::move(shard.file);
    task.report.slices = std::move(shard.slices);
  }
  for (const TensorSlice& slice : task.slices) {
    task.report.tensors[slice.name] = {slice.type, slice.extent.box.global_shape};
  }
  base::fault_point("checkpoint.written", task.identity.rank);
}

void remove_old(const ConcludeTask& task, const std::string& published) {
  try {
    const auto entries = list_checkpoints(task.publish.checkpoints_dir);
    for (const CatalogEntry& entry : choose_removals(entries, task.retention, task.verified)) {
      // Newer steps of an abandoned future must not push out what was saved just now.
      if (entry.path != published) {
        remove_checkpoint(entry.path);
      }
    }
  } catch (const std::exception& error) {
    base::log_local(base::LogLevel::warning, fmt::format("old checkpoints stay: {}", error.what()));
  }
}

void discard(const std::string& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("cannot delete the unfinished {}: {}", folder, error.message()));
  }
}

}  // namespace

std::int64_t with_margin(std::int64_t whole_bytes) {
  return whole_bytes + whole_bytes / 50;
}

void fill_head(Manifest& head, std::int64_t step, const std::string& run_id, int world_size) {
  head.run_id = run_id;
  head.step = step;
  head.world_size = world_size;
  head.created = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

void WriteTask::run() {
  const base::ScopedSpan span(base::SpanKind::io, "write shard");
  const base::Stopwatch watch;
  try {
    write_part(*this);
  } catch (const std::exception& error) {
    report.failure = error.what();
  }
  report_text = to_text(report);
  seconds = watch.seconds();
}

void ConcludeTask::run() {
  const base::ScopedSpan span(base::SpanKind::io, "publish checkpoint");
  try {
    std::vector<RankReport> parsed;
    for (const std::string& text : reports) {
      parsed.push_back(report_from_text(text));
    }
    const Manifest manifest = merge_reports(std::move(head), parsed);
    try {
      base::fault_point("checkpoint.before_publish", 0);
      verdict.path = publish_checkpoint(publish, manifest);
    } catch (const std::exception& error) {
      throw base::IoError("rank 0: {}", error.what());
    }
    verdict.published = true;
  } catch (const std::exception& error) {
    verdict.reason = error.what();
    discard(publish.unfinished);
  }
  if (verdict.published) {
    remove_old(*this, verdict.path);
  }
}

}  // namespace athanor::checkpoint::detail
