// What ranks write to each other about a save: each rank's report, and what rank 0 makes of all of them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_writer.hpp"
#include "checkpoint/manifest.hpp"

namespace athanor::checkpoint::detail {

/// From each rank to rank 0 when its part is written, or has failed.
struct RankReport {
  int rank = 0;
  std::int64_t attempt = 0;  ///< which save of the job this is about, from 1
  std::int64_t step = 0;
  std::string failure;             ///< empty: written
  std::optional<StoredFile> file;  ///< absent when the rank has no slices
  std::vector<StoredSlice> slices;
  std::map<std::string, StoredTensor> tensors;  ///< those that the slices are parts of
  std::optional<StoredRole> role;
};
std::string to_text(const RankReport& report);
RankReport report_from_text(const std::string& text);

/// The whole checkpoint's manifest. Throws IoError with rank and reason of the first failure, CheckpointError
/// when the parts do not make up whole tensors.
Manifest merge_reports(Manifest head, const std::vector<RankReport>& reports);

/// From rank 0 to each rank.
struct VerdictLetter {
  std::int64_t attempt = 0;
  SaveVerdict verdict;
};
std::string to_text(const VerdictLetter& letter);
VerdictLetter verdict_from_text(const std::string& text);

/// From each rank to rank 0 before the first save, to see whether memory and disk suffice.
struct PrepareLetter {
  std::string host;
  std::int64_t snapshot_bytes = 0;   ///< the buffer this rank needs
  std::int64_t held_bytes = 0;       ///< the buffer it has
  std::int64_t available_bytes = 0;  ///< memory of the host, before any rank has allocated
  std::int64_t shard_bytes = 0;      ///< upper bound of the rank's file
};
std::string to_text(const PrepareLetter& letter);
PrepareLetter prepare_from_text(const std::string& text);

/// What rank 0 makes of them.
struct Preparation {
  std::int64_t whole_bytes = 0;  ///< upper bound of a checkpoint
  /// Host, bytes needed and available where memory does not hold the snapshots; empty: it does everywhere.
  std::string memory_shortage;
};
Preparation decide_preparation(const std::vector<PrepareLetter>& letters);
std::string to_text(const Preparation& preparation);
Preparation preparation_from_text(const std::string& text);

}  // namespace athanor::checkpoint::detail
