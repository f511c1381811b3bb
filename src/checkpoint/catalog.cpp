#include "checkpoint/catalog.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <tuple>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/detail/complete_marker.hpp"
#include "checkpoint/detail/durable_files.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view step_prefix = "step-";
constexpr const char* bad_name = "BAD";

// The N of "step-NNNNNNNN", exactly as step_folder_name writes it.
std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(step_prefix)) {
    return std::nullopt;
  }
  std::int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + step_prefix.size(), end, step);
  if (parsed.ec != std::errc() || parsed.ptr != end || step < 0 || step_folder_name(step) != name) {
    return std::nullopt;
  }
  return step;
}

// The file or folder name at the end of a path, trailing slashes or not.
std::string name_of(const fs::path& path) {
  const fs::path normal = path.lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

// The folder that links may not lead out of: the run, or a checkpoints folder that lies elsewhere.
fs::path confines_of(const fs::path& checkpoints_dir) {
  const fs::path real = fs::canonical(checkpoints_dir);
  return name_of(checkpoints_dir) == "checkpoints" ? fs::canonical(checkpoints_dir / "..") : real;
}

bool lies_within(const fs::path& real, const fs::path& folder) {
  const auto [end, unused] = std::mismatch(folder.begin(), folder.end(), real.begin(), real.end());
  return end == folder.end();
}

// Why a link must not be followed; empty when it is none, or leads to a place inside.
std::string link_problem(const fs::path& path, const fs::path& confines) {
  std::error_code error;
  if (!fs::is_symlink(path, error)) {
    return "";
  }
  const fs::path target = fs::canonical(path, error);
  if (error) {
    return "a symbolic link to nothing";
  }
  return lies_within(target, confines)
             ? ""
             : fmt::format("a symbolic link that leads out of {}", confines.string());
}

std::string bad_reason(const fs::path& folder) {
  std::string reason = detail::read_whole_file((folder / bad_name).string());
  while (!reason.empty() && reason.back() == '\n') {
    reason.pop_back();
  }
  return "marked bad: " + reason;
}

// Status and reason of a folder, by its small files only.
std::pair<CheckpointStatus, std::string> examine(const fs::path& folder) {
  using enum CheckpointStatus;
  try {
    if (fs::exists(folder / bad_name)) {
      return {bad, bad_reason(folder)};
    }
    if (!fs::exists(folder / detail::complete_file_name)) {
      return {incomplete, "no COMPLETE: the save was not finished"};
    }
    if (!fs::exists(folder / detail::manifest_file_name)) {
      return {incomplete, "no manifest.json"};
    }
    const std::string manifest = detail::read_whole_file((folder / detail::manifest_file_name).string());
    detail::check_complete_marker(detail::read_whole_file((folder / detail::complete_file_name).string()),
                                  manifest, folder.string());
    const auto named_step = step_of(name_of(folder));
    const auto json = nlohmann::json::parse(manifest, nullptr, false);
    if (named_step && (!json.is_object() || json.value("step", std::int64_t{-1}) != *named_step)) {
      return {incomplete, "its manifest is of another step: the folder was renamed"};
    }
    return {whole, ""};
  } catch (const std::exception& error) {  // unreadable, or a step that is no number
    return {incomplete, error.what()};
  }
}

bool looks_like_checkpoint(const fs::path& folder) {
  const std::string name = name_of(folder);
  return step_of(name) || name.starts_with(".tmp-") || fs::exists(folder / detail::manifest_file_name) ||
         fs::exists(folder / detail::complete_file_name) || fs::exists(folder / bad_name);
}

std::string resolve_named(const std::string& path) {
  const std::string name = name_of(path);
  if (name.starts_with(".tmp-") || name.starts_with(".trash-")) {
    throw base::CheckpointError(
        "{} is no checkpoint (an unfinished save or a deleted one) name a step-* folder", path);
  }
  const auto [status, reason] = examine(path);
  if (status != CheckpointStatus::whole) {
    throw base::CheckpointError("{} cannot be loaded ({}) name another checkpoint", path, reason);
  }
  return path;
}

std::string resolve_newest(const std::string& path, const std::string& checkpoints_dir) {
  const std::vector<CatalogEntry> entries = list_checkpoints(checkpoints_dir);
  if (entries.empty()) {
    throw base::MissingInputError("{} has no checkpoint (no step-* folder in {}) name a checkpoint or a run",
                                  path, checkpoints_dir);
  }
  std::string reasons;
  for (const CatalogEntry& entry : entries) {
    if (entry.status == CheckpointStatus::whole) {
      return entry.path;
    }
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", name_of(entry.path), entry.reason);
  }
  throw base::CheckpointError("no checkpoint of {} can be loaded ({}) start afresh or restore one", path,
                              reasons);
}

}  // namespace

std::vector<CatalogEntry> list_checkpoints(const std::string& checkpoints_dir) {
  std::vector<CatalogEntry> entries;
  std::error_code error;
  if (!fs::is_directory(checkpoints_dir, error)) {
    return entries;
  }
  const fs::path confines = confines_of(checkpoints_dir);
  for (const auto& item : fs::directory_iterator(checkpoints_dir)) {
    const auto step = step_of(item.path().filename().string());
    if (!step || !(item.is_symlink(error) || item.is_directory(error))) {
      continue;
    }
    CatalogEntry& entry = entries.emplace_back();
    entry.path = item.path().string();
    entry.step = *step;
    entry.reason = link_problem(item.path(), confines);
    if (entry.reason.empty()) {
      std::tie(entry.status, entry.reason) = examine(item.path());
    }
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step > b.step; });
  return entries;
}

std::string step_folder_name(std::int64_t step) {
  return fmt::format("{}{:08}", step_prefix, step);
}

std::string resolve_checkpoint(const std::string& path) {
  std::error_code error;
  const fs::path parent = fs::path(path).lexically_normal().parent_path();
  if (fs::is_symlink(path, error) && name_of(parent) == "checkpoints") {
    if (const std::string problem = link_problem(path, confines_of(parent)); !problem.empty()) {
      throw base::CheckpointError("{} is not followed ({}) name its target", path, problem);
    }
  }
  if (!fs::exists(path, error)) {
    throw base::MissingInputError("{} does not exist ({}) name a checkpoint, a run or a checkpoints folder",
                                  path, error ? error.message() : detail::reason_of(ENOENT));
  }
  if (!fs::is_directory(path, error)) {
    throw base::MissingInputError(
        "{} is a file (a checkpoint is a folder) name a checkpoint, a run or a "
        "checkpoints folder",
        path);
  }
  if (looks_like_checkpoint(path)) {
    return resolve_named(path);
  }
  const fs::path inside = fs::path(path) / "checkpoints";
  if (!fs::is_directory(inside, error)) {
    return resolve_newest(path, path);
  }
  if (const std::string problem = link_problem(inside, fs::canonical(path)); !problem.empty()) {
    throw base::CheckpointError("{} is not followed ({}) name its target", inside.string(), problem);
  }
  return resolve_newest(path, inside.string());
}

void mark_bad(const std::string& folder, const std::string& reason) {
  try {
    detail::write_durably(folder, bad_name, reason + "\n");
    detail::fsync_path(folder);
  } catch (const base::IoError& error) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("cannot mark {} bad ({}) it will be tried again", folder, error.what()));
  }
}

std::string unfinished_folder_name(std::int64_t step, const std::string& token) {
  return fmt::format(".tmp-{}-{}", step_folder_name(step), token);
}

std::vector<CatalogEntry> choose_removals(const std::vector<CatalogEntry>& entries,
                                          const RetentionPolicy& policy,
                                          const std::vector<std::string>& verified) {
  ATHANOR_CHECK(policy.keep >= 1, "checkpoint.keep is {}", policy.keep);
  std::vector<CatalogEntry> whole;
  std::copy_if(entries.begin(), entries.end(), std::back_inserter(whole),
               [](const CatalogEntry& entry) { return entry.status == CheckpointStatus::whole; });
  std::sort(whole.begin(), whole.end(), [](const auto& a, const auto& b) { return a.step > b.step; });
  const auto is_verified = [&](const CatalogEntry& entry) {
    return std::find(verified.begin(), verified.end(), entry.path) != verified.end();
  };
  const auto newest_verified = std::find_if(whole.begin(), whole.end(), is_verified);
  std::vector<CatalogEntry> removals;
  // Oldest first: a job that dies in the midst of it keeps the newest.
  for (auto entry = whole.rbegin(); entry != whole.rend(); ++entry) {
    const auto position = std::prev(entry.base());
    const bool is_kept =
        position - whole.begin() < policy.keep || position == newest_verified ||
        std::find(policy.pinned.begin(), policy.pinned.end(), entry->step) != policy.pinned.end();
    if (!is_kept) {
      removals.push_back(*entry);
    }
  }
  return removals;
}

}  // namespace athanor::checkpoint
