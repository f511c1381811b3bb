// The part of the catalog that changes what is on disk: publishing and removing.
#include <chrono>
#include <filesystem>
#include <system_error>
#include <thread>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/detail/complete_marker.hpp"
#include "checkpoint/detail/durable_files.hpp"
#include "checkpoint/shard_file.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr int publishing_rank = 0;
constexpr const char* trash_prefix = ".trash-";
// Network file systems show what another machine wrote after a while only.
constexpr double arrival_deadline_s = 20.0;

bool has_size(const fs::path& path, std::int64_t bytes) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return !error && static_cast<std::int64_t>(size) == bytes;
}

void wait_for_files(const std::string& folder, const Manifest& manifest) {
  const base::Stopwatch watch;
  for (const StoredFile& file : manifest.files) {
    const fs::path path = fs::path(folder) / file.name;
    while (!has_size(path, file.bytes)) {
      if (watch.seconds() > arrival_deadline_s) {
        throw base::IoError(
            "{} with {} bytes, written by rank {}, is not to be seen by rank 0 (after {} s) put the "
            "checkpoints "
            "folder on a file system that all machines of the job share",
            path.string(), file.bytes, file.rank, arrival_deadline_s);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
}

void write_contents(const PublishOptions& options, const Manifest& manifest) {
  const std::string& folder = options.unfinished;
  wait_for_files(folder, manifest);
  write_index(folder, manifest);
  detail::fsync_path(folder + "/index.h5");
  for (const auto& [name, source] : options.extra_files) {
    detail::copy_durably(source, folder, name);
  }
  const std::string text = to_json(manifest).dump() + "\n";
  detail::write_durably(folder, detail::manifest_file_name, text);
  detail::fsync_path(folder);  // COMPLETE must not outlive a crash that what it vouches for does not
  base::fault_point("checkpoint.before_complete", publishing_rank);
  detail::write_durably(folder, detail::complete_file_name, detail::complete_marker_text(text));
  detail::fsync_path(folder);
}

// A name in `parent` that is not taken yet.
std::string free_trash_path(const fs::path& parent, const std::string& name) {
  fs::path path = parent / (trash_prefix + name);
  for (int attempt = 1; fs::exists(fs::symlink_status(path)); ++attempt) {
    path = parent / fmt::format("{}{}-{}", trash_prefix, name, attempt);
  }
  return path.string();
}

// Moves what is not whole out of the way; returns where to, or "". Throws IoError when it is whole.
std::string move_aside(const PublishOptions& options, std::int64_t step) {
  for (const CatalogEntry& entry : list_checkpoints(options.checkpoints_dir)) {
    if (entry.step != step) {
      continue;
    }
    if (entry.status == CheckpointStatus::whole) {
      throw base::IoError(
          "{} is there already (a whole checkpoint is not replaced) move it away or continue from it",
          entry.path);
    }
    base::log_local(base::LogLevel::warning, fmt::format("replacing {} ({})", entry.path, entry.reason));
    std::string trash = free_trash_path(options.checkpoints_dir, step_folder_name(step));
    detail::rename_path(entry.path, trash);
    return trash;
  }
  return "";
}

// The rename that publishes, undone if the folder above cannot be made durable: a checkpoint that rank 0
// reports as failed must not be there.
void rename_durably(const PublishOptions& options, const std::string& target) {
  detail::rename_path(options.unfinished, target);
  try {
    detail::fsync_path(options.checkpoints_dir);
  } catch (const base::IoError&) {
    detail::rename_path(target, options.unfinished);
    throw;
  }
}

// `latest` is a hint for people and scripts; loading never needs it.
void write_hint(const PublishOptions& options, const std::string& name) {
  try {
    base::fault_point("checkpoint.before_latest", publishing_rank);
    detail::write_durably(options.checkpoints_dir, "latest", name + "\n");
    detail::fsync_path(options.checkpoints_dir);
  } catch (const base::IoError& error) {
    base::log_local(base::LogLevel::warning, fmt::format("the hint 'latest' is stale: {}", error.what()));
  }
}

void remove_tree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) {
    throw base::IoError("cannot delete {} ({}) delete it by hand", path, error.message());
  }
}

// Whether it is gone.
bool delete_or_warn(const std::string& path) {
  try {
    remove_tree(path);
  } catch (const base::IoError& error) {
    base::log_local(base::LogLevel::warning, error.what());
    return false;
  }
  return true;
}

}  // namespace

std::string publish_checkpoint(const PublishOptions& options, const Manifest& manifest) {
  write_contents(options, manifest);
  base::fault_point("checkpoint.before_rename", publishing_rank);
  const std::string name = step_folder_name(manifest.step);
  std::string target = (fs::path(options.checkpoints_dir) / name).string();
  const std::string replaced = move_aside(options, manifest.step);
  rename_durably(options, target);
  write_hint(options, name);
  if (!replaced.empty()) {
    delete_or_warn(replaced);
  }
  return target;
}

void remove_checkpoint(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  const fs::path parent = normal.parent_path();
  const std::string trash = free_trash_path(parent, normal.filename().string());
  detail::rename_path(path, trash);
  detail::fsync_path(parent.string());
  base::fault_point("checkpoint.during_rotation", publishing_rank);
  remove_tree(trash);
}

std::vector<std::string> remove_leftovers(const std::string& checkpoints_dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& item : fs::directory_iterator(checkpoints_dir, error)) {
    const std::string name = item.path().filename().string();
    if (name.starts_with(".tmp-") || name.starts_with(trash_prefix)) {
      names.push_back(name);
    }
  }
  std::erase_if(names, [&](const std::string& name) {
    return !delete_or_warn((fs::path(checkpoints_dir) / name).string());
  });
  return names;
}

}  // namespace athanor::checkpoint
