#include "checkpoint/checkpoint_reader.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/detail/complete_marker.hpp"
#include "checkpoint/detail/durable_files.hpp"
#include "checkpoint/detail/shard_input.hpp"
#include "checkpoint/io_thread.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t max_marker_bytes = 4096;

std::string read_small_file(const std::string& folder, const char* name) {
  const std::string path = folder + "/" + name;
  try {
    return detail::read_whole_file(path);
  } catch (const base::IoError& error) {
    throw base::CheckpointError("{}: {} cannot be read ({}) use an older checkpoint", folder, name,
                                error.what());
  }
}

std::string read_marker(const std::string& folder) {
  const fs::path path = fs::path(folder) / detail::complete_file_name;
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(path, error);
  if (error) {
    throw base::CheckpointError("{}: {} is missing (the save was not finished) use an older checkpoint",
                                folder, detail::complete_file_name);
  }
  return bytes > max_marker_bytes ? std::string() : read_small_file(folder, detail::complete_file_name);
}

Manifest load_manifest(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw base::MissingInputError("{} is no checkpoint (there is no such folder) name another", folder);
  }
  const std::string marker = read_marker(folder);
  const std::string text = read_small_file(folder, detail::manifest_file_name);
  detail::check_complete_marker(marker, text, folder);
  try {
    return manifest_from_text(text);
  } catch (const base::CheckpointError& refusal) {
    throw base::CheckpointError("{}: {}", folder, refusal.what());
  }
}

// The elements of one stored slice that one target wants.
struct ReadJob {
  const StoredSlice* slice = nullptr;
  const TensorSlice* target = nullptr;
  std::vector<CopyRun> runs;  // by source, disjoint there
  std::int64_t offset = 0;    // of the slice in its file
};

// First run of the job that ends behind element `first` of the slice.
std::vector<CopyRun>::const_iterator first_run_behind(const ReadJob& job, std::int64_t first) {
  return std::ranges::partition_point(
      job.runs, [first](const CopyRun& run) { return run.source_first + run.count <= first; });
}

// Reads a block straight to where it is wanted, or, when it is not wanted whole and in one piece, by way of
// the buffer. `run` is the first of the job that ends behind the block's first element.
void read_wanted(const detail::PayloadFile& file, const ReadJob& job, const detail::SliceBlock& block,
                 std::vector<CopyRun>::const_iterator run, std::byte* buffer) {
  const ElementType type = job.target->type;
  const std::int64_t width = element_bytes(type);
  const std::int64_t end = block.first + block.count;
  auto* target = static_cast<std::byte*>(job.target->data);
  if (run->source_first <= block.first && run->source_first + run->count >= end) {
    std::byte* to = target + (run->target_first + block.first - run->source_first) * width;
    detail::read_block(file, *job.slice, type, block, job.offset, to);
    detail::check_finite(*job.slice, type, block.first, block.count, to);
    return;
  }
  detail::read_block(file, *job.slice, type, block, job.offset, buffer);
  for (; run != job.runs.end() && run->source_first < end; ++run) {
    const std::int64_t first = std::max(run->source_first, block.first);
    const std::int64_t count = std::min(run->source_first + run->count, end) - first;
    std::byte* to = target + (run->target_first + first - run->source_first) * width;
    std::memcpy(to, buffer + (first - block.first) * width, static_cast<std::size_t>(count * width));
    detail::check_finite(*job.slice, type, first, count, to);
  }
}

// Reads those blocks of the job's slice that hold wanted elements.
void read_job(const detail::PayloadFile& file, const ReadJob& job, std::byte* buffer) {
  for (std::int64_t index = 0; index < detail::block_count(*job.slice); ++index) {
    const detail::SliceBlock block = detail::block_at(*job.slice, job.target->type, index);
    const auto run = first_run_behind(job, block.first);
    if (run != job.runs.end() && run->source_first < block.first + block.count) {
      read_wanted(file, job, block, run, buffer);
    }
  }
}

std::unique_ptr<std::byte[]> block_buffer() {
  return std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(checksum_block_bytes));
}

}  // namespace

struct CheckpointReader::State {
  explicit State(const std::string& path);

  std::string folder;
  Manifest manifest;
  std::map<std::string_view, std::vector<const StoredSlice*>> slices;  // by tensor

  using JobsOfFiles = std::map<std::string_view, std::vector<ReadJob>>;

  void check_target(const TensorSlice& target) const;
  JobsOfFiles plan(const std::vector<TensorSlice>& targets) const;
  void read_jobs(const StoredFile& file, std::vector<ReadJob>& jobs, std::byte* buffer) const;
  void verify_slice(const detail::ShardInput& input, const StoredSlice& slice, std::byte* buffer) const;
  void verify_file(const StoredFile& file, const std::vector<const StoredSlice*>& wanted, std::byte* buffer,
                   std::vector<std::string>& problems) const;
};

CheckpointReader::State::State(const std::string& path) : folder(path), manifest(load_manifest(path)) {
  for (const StoredFile& file : manifest.files) {
    detail::check_file_size(folder, file);
  }
  for (const StoredSlice& slice : manifest.slices) {
    slices[slice.tensor].push_back(&slice);
  }
}

void CheckpointReader::State::check_target(const TensorSlice& target) const {
  const auto found = manifest.tensors.find(target.name);
  if (found == manifest.tensors.end()) {
    throw base::CheckpointError("{}: tensor {} is not there (it is wanted) use a checkpoint of this model",
                                folder, target.name);
  }
  const StoredTensor& stored = found->second;
  if (stored.type != target.type || stored.shape != target.extent.box.global_shape) {
    throw base::CheckpointError("{}: tensor {} is {} [{}] ({} [{}] is wanted) use a checkpoint of this model",
                                folder, target.name, element_type_name(stored.type),
                                fmt::join(stored.shape, ", "), element_type_name(target.type),
                                fmt::join(target.extent.box.global_shape, ", "));
  }
  ATHANOR_CHECK(target.data != nullptr || target.extent.count == 0, "target {} has no memory", target.name);
}

CheckpointReader::State::JobsOfFiles CheckpointReader::State::plan(
    const std::vector<TensorSlice>& targets) const {
  JobsOfFiles jobs;
  for (const TensorSlice& target : targets) {
    check_target(target);
    const auto stored = slices.find(target.name);
    if (target.extent.count == 0 || stored == slices.end()) {
      continue;
    }
    for (const StoredSlice* slice : stored->second) {
      std::vector<CopyRun> runs = overlap_runs(slice->extent, target.extent);
      if (!runs.empty()) {
        jobs[slice->file].push_back({slice, &target, std::move(runs), 0});
      }
    }
  }
  return jobs;
}

void CheckpointReader::State::read_jobs(const StoredFile& file, std::vector<ReadJob>& jobs,
                                        std::byte* buffer) const {
  const detail::ShardInput input(folder, manifest, file);
  for (ReadJob& job : jobs) {
    job.offset = input.locate(*job.slice);
  }
  std::ranges::sort(jobs, {}, &ReadJob::offset);
  for (const ReadJob& job : jobs) {
    read_job(input.payload(), job, buffer);
  }
}

void CheckpointReader::State::verify_slice(const detail::ShardInput& input, const StoredSlice& slice,
                                           std::byte* buffer) const {
  input.check_attributes(slice);
  const ElementType type = manifest.tensors.at(slice.tensor).type;
  const std::int64_t offset = input.locate(slice);
  for (std::int64_t index = 0; index < detail::block_count(slice); ++index) {
    const detail::SliceBlock block = detail::block_at(slice, type, index);
    detail::read_block(input.payload(), slice, type, block, offset, buffer);
    detail::check_finite(slice, type, block.first, block.count, buffer);
  }
}

void CheckpointReader::State::verify_file(const StoredFile& file,
                                          const std::vector<const StoredSlice*>& wanted, std::byte* buffer,
                                          std::vector<std::string>& problems) const {
  std::optional<detail::ShardInput> input;
  try {
    input.emplace(folder, manifest, file);
  } catch (const base::CheckpointError& error) {
    problems.emplace_back(error.what());
    return;
  }
  for (const StoredSlice* slice : wanted) {
    try {
      verify_slice(*input, *slice, buffer);
    } catch (const base::CheckpointError& error) {
      problems.emplace_back(error.what());
    }
  }
}

CheckpointReader::CheckpointReader(const std::string& folder) : state_(std::make_unique<State>(folder)) {}

CheckpointReader::~CheckpointReader() = default;

const std::string& CheckpointReader::folder() const {
  return state_->folder;
}

const Manifest& CheckpointReader::manifest() const {
  return state_->manifest;
}

void CheckpointReader::read(const std::vector<TensorSlice>& targets) const {
  run_on_io_thread([&] {
    State::JobsOfFiles jobs = state_->plan(targets);
    const std::unique_ptr<std::byte[]> buffer = block_buffer();
    for (const StoredFile& file : state_->manifest.files) {
      const auto found = jobs.find(file.name);
      if (found != jobs.end()) {
        state_->read_jobs(file, found->second, buffer.get());
      }
    }
  });
}

std::vector<std::string> CheckpointReader::verify(int part, int parts) const {
  ATHANOR_CHECK(part >= 0 && part < parts, "part {} of {}", part, parts);
  std::vector<std::string> problems;
  run_on_io_thread([&] {
    const auto is_ours = [&](std::size_t index) {
      return index % static_cast<std::size_t>(parts) == static_cast<std::size_t>(part);
    };
    std::map<std::string_view, std::vector<const StoredSlice*>> wanted;
    for (std::size_t i = 0; i < state_->manifest.slices.size(); ++i) {
      if (is_ours(i)) {
        wanted[state_->manifest.slices[i].file].push_back(&state_->manifest.slices[i]);
      }
    }
    const std::unique_ptr<std::byte[]> buffer = block_buffer();
    for (std::size_t i = 0; i < state_->manifest.files.size(); ++i) {
      const StoredFile& file = state_->manifest.files[i];
      const auto found = wanted.find(file.name);
      if (found != wanted.end()) {
        state_->verify_file(file, found->second, buffer.get(), problems);
      } else if (is_ours(i)) {
        state_->verify_file(file, {}, buffer.get(), problems);
      }
    }
  });
  return problems;
}

const StoredRole& stored_role(const CheckpointReader& reader, const std::string& name) {
  const StoredRole* found = reader.manifest().find_role(name);
  if (found == nullptr) {
    std::vector<std::string> names;
    for (const StoredRole& stored : reader.manifest().roles) {
      names.push_back(stored.name);
    }
    throw base::CheckpointError("{} has no role {} (it holds: {}) choose one of them", reader.folder(), name,
                                fmt::join(names, ", "));
  }
  return *found;
}

const StoredRole& stored_role_with_weights(const CheckpointReader& reader, const std::string& name) {
  const StoredRole& role = stored_role(reader, name);
  const std::string prefix = name + "/parameters/";
  const auto& tensors = reader.manifest().tensors;
  const auto first = tensors.lower_bound(prefix);
  if (first == tensors.end() || !first->first.starts_with(prefix)) {
    throw base::CheckpointError(
        "{} holds no weights of the role {} (it was frozen: they are in the checkpoint that {}.init named) "
        "read that one",
        reader.folder(), name, name);
  }
  return role;
}

}  // namespace athanor::checkpoint
