// The checkpoints of a run on disk: which are there, which are whole, publishing and removing them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/manifest.hpp"

namespace athanor::checkpoint {

enum class CheckpointStatus {
  whole,       ///< COMPLETE is there and fits the manifest
  incomplete,  ///< a save that was not published, or a damaged COMPLETE or manifest
  bad,         ///< marked after a failed load
};

struct CatalogEntry {
  std::string path;
  std::int64_t step = 0;
  CheckpointStatus status = CheckpointStatus::incomplete;
  std::string reason;  ///< why it is not whole
};

/// The step-* folders of a checkpoints folder, newest first. An absent folder has none.
std::vector<CatalogEntry> list_checkpoints(const std::string& checkpoints_dir);

/// "step-00000100" for 100.
std::string step_folder_name(std::int64_t step);

/// The folder that `path` means: a checkpoint, or the newest whole one of a run or of a checkpoints folder.
/// Symbolic links that lead out of the run are not followed. Throws MissingInputError (no such path; a file;
/// none inside), CheckpointError (some inside, none whole; the named one is not whole), naming why.
std::string resolve_checkpoint(const std::string& path);

/// Writes a file BAD with the reason into a checkpoint (on a read-only file system: a warning only).
void mark_bad(const std::string& folder, const std::string& reason);

/// Name of the folder of an unfinished save; unique for (step, attempt, token).
std::string unfinished_folder_name(std::int64_t step, const std::string& token);

/// From a folder with all shard files to a published checkpoint: index.h5, manifest.json, COMPLETE (each
/// written aside, fsynced, renamed), fsync of the folder, rename to step-NNNNNNNN, fsync of the parent, the
/// hint `latest`. A bad checkpoint of the same step is moved aside first; a whole one is refused with
/// IoError. `extra` files (name -> bytes) go in too, e.g. the tokenizer. Call on the I/O thread of one rank.
struct PublishOptions {
  std::string checkpoints_dir;
  std::string unfinished;                                        ///< path of the unfinished folder
  std::vector<std::pair<std::string, std::string>> extra_files;  ///< name, path to copy from
};
std::string publish_checkpoint(const PublishOptions& options, const Manifest& manifest);

/// Which checkpoints stay.
struct RetentionPolicy {
  std::int64_t keep = 3;             ///< newest whole ones; at least 1
  std::vector<std::int64_t> pinned;  ///< steps that are never removed
};
/// The entries to remove: whole ones beyond the policy. Never the newest whole one, nor the newest in
/// `verified` (paths that were read back without error). Arithmetic only.
std::vector<CatalogEntry> choose_removals(const std::vector<CatalogEntry>& entries,
                                          const RetentionPolicy& policy,
                                          const std::vector<std::string>& verified);
/// Renames to .trash-* and then deletes, so that a kill at any moment leaves only whole ones and trash.
void remove_checkpoint(const std::string& path);
/// Deletes .tmp-* and .trash-* of earlier jobs; returns their names. The caller must hold the run's lock.
std::vector<std::string> remove_leftovers(const std::string& checkpoints_dir);

}  // namespace athanor::checkpoint
