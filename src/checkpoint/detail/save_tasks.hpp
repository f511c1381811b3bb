// The file work of a save, done on the I/O thread: each rank's part, and what rank 0 does when all are there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_writer.hpp"
#include "checkpoint/detail/save_letters.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/shard_file.hpp"
#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint::detail {

/// Disk space to ask for, for a checkpoint of at most `whole_bytes`: 2 % more.
std::int64_t with_margin(std::int64_t whole_bytes);

/// What rank 0 knows of a checkpoint before the reports.
void fill_head(Manifest& head, std::int64_t step, const std::string& run_id, int world_size);

/// Writes this rank's file into the unfinished folder, which it makes if it is the first.
struct WriteTask {
  std::string checkpoints_dir;
  std::string folder;
  ShardIdentity identity;
  std::int64_t whole_bytes = 0;     ///< of all ranks, for the space preflight
  std::vector<TensorSlice> slices;  ///< none empty
  RankReport report;                ///< rank, attempt, step and role are filled in before

  // Results.
  std::string report_text;
  double seconds = 0.0;

  /// Never throws: a failure is part of the report.
  void run();
};

/// Publishes and removes old ones, or discards; rank 0 only.
struct ConcludeTask {
  std::vector<std::string> reports;  ///< by rank
  Manifest head;
  PublishOptions publish;
  RetentionPolicy retention;
  std::vector<std::string> verified;

  SaveVerdict verdict;  ///< the result; its step is filled in before

  /// Never throws: a failure is the verdict.
  void run();
};

}  // namespace athanor::checkpoint::detail
