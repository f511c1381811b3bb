#include "distill/signal_file/writer.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <span>
#include <system_error>
#include <utility>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/hash.hpp"
#include "distill/signal_file/detail/block.hpp"
#include "distill/signal_file/detail/output_file.hpp"

namespace athanor::distill::signal_file {
namespace {

namespace fs = std::filesystem;

std::string data_path(const std::string& folder, std::uint32_t number) {
  return (fs::path(folder) / data_file_name(number)).string();
}

void make_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error || !fs::is_directory(folder)) {
    throw base::CannotCreateError("distill.record={} cannot be made ({}) choose a folder you may write to",
                                  folder, error ? error.message() : "it is no folder");
  }
}

void check_no_leftovers(const std::string& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with("signals-")) {
      throw base::CannotCreateError(
          "distill.record={} (it holds {}, but no {}: a recording that is damaged) choose another folder, or "
          "remove these files",
          folder, entry.path().filename().string(), index_name);
    }
  }
}

void check_same(const std::string& folder, const RecordingInfo& stored, const RecordingInfo& own) {
  const auto refuse = [&](const std::string& what, const std::string& was, const std::string& is) {
    throw base::ConfigError(
        "distill.record={} (the recording there has {} {}, this run {}) choose another folder", folder, what,
        was.empty() ? "none" : was, is.empty() ? "none" : is);
  };
  const std::pair<const char*, std::string RecordingInfo::*> texts[] = {
      {"training text", &RecordingInfo::dataset},
      {"the mixture", &RecordingInfo::mixture},
      {"tokenizer", &RecordingInfo::tokenizer},
      {"the teacher", &RecordingInfo::teacher_identity}};
  for (const auto& [what, member] : texts) {
    if (stored.*member != own.*member) {
      refuse(what, stored.*member, own.*member);
    }
  }
  if (stored.seed != own.seed || stored.seq != own.seq || stored.reset_attention != own.reset_attention) {
    refuse("run.seed, batch.seq, data.reset_attention",
           fmt::format("{}, {}, {}", stored.seed, stored.seq, stored.reset_attention),
           fmt::format("{}, {}, {}", own.seed, own.seq, own.reset_attention));
  }
  for (const auto& [key, value] : own.teacher) {
    const auto found = stored.teacher.find(key);
    if (found == stored.teacher.end() || found->second != value) {
      refuse(fmt::format("teacher.{}", key), found == stored.teacher.end() ? "" : found->second, value);
    }
  }
}

// The fields of both, those that are stored first.
std::vector<FieldInfo> merge_fields(const std::string& folder, std::vector<FieldInfo> stored,
                                    const std::vector<FieldInfo>& own) {
  for (const FieldInfo& field : own) {
    const auto same_name = std::find_if(stored.begin(), stored.end(),
                                        [&](const FieldInfo& other) { return other.name == field.name; });
    if (same_name == stored.end()) {
      stored.push_back(field);
    } else if (*same_name != field) {
      throw base::ConfigError(
          "distill.record={} (the recording there has {} columns of {} for field {}, this run has {} of {}) "
          "choose another folder",
          folder, same_name->columns, name_of(same_name->type), field.name, field.columns,
          name_of(field.type));
    }
  }
  return stored;
}

void add_kept(const MappedRecording& recording, const RecordedStep& step, PreparedRecording& prepared,
              std::map<std::uint32_t, std::int64_t>& ends) {
  for (const MappedBlock& block : step.blocks) {
    prepared.blocks.add(block.place, block.header);
    std::int64_t& end = ends[block.place.file];
    const auto size = static_cast<std::int64_t>(block.header.size() + block.payload.size());
    end = std::max(end, block.place.offset + size);
  }
  const std::vector<bool>& has_field = recording.kinds()[step.kind].has_field;
  for (std::size_t i = 0; i < has_field.size(); ++i) {
    if (has_field[i]) {
      prepared.kept_fields.insert(recording.info().fields[i].name);
    }
  }
  prepared.next_step = step.step + 1;
}

}  // namespace

PreparedRecording prepare_recording(const std::string& folder, const RecordingInfo& info,
                                    std::int64_t first_step, std::int64_t end_step) {
  make_folder(folder);
  PreparedRecording prepared;
  if (!has_recording(folder)) {
    check_no_leftovers(folder);
    prepared.info = info;
    publish_index(folder, prepared.info, prepared.blocks, false);
    return prepared;
  }
  std::map<std::uint32_t, std::int64_t> ends;
  bool is_complete = false;
  {
    const MappedRecording recording(folder);
    check_same(folder, recording.info(), info);
    is_complete = recording.is_complete() && first_step >= end_step;
    prepared.info = recording.info();
    prepared.info.fields = merge_fields(folder, recording.info().fields, info.fields);
    for (const RecordedStep& step : recording.steps()) {
      if (step.step < first_step) {
        add_kept(recording, step, prepared, ends);
      }
    }
  }
  // The shorter index first: what lies behind it is then a tail like that of a killed job.
  publish_index(folder, prepared.info, prepared.blocks, is_complete);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("signals-")) {
      const auto kept = std::find_if(ends.begin(), ends.end(),
                                     [&](const auto& end) { return name == data_file_name(end.first); });
      detail::truncate_file(entry.path().string(), kept == ends.end() ? 0 : kept->second);
    }
  }
  return prepared;
}

struct SignalFileWriter::State {
  RecordingInfo info;
  std::uint32_t writer;
  std::uint32_t writers;
  detail::OutputFile file;
  BlockTable appended{};
  std::vector<std::byte> header{};
  std::vector<std::byte> payload{};

  State(const std::string& folder, RecordingInfo recording, std::uint32_t number, std::uint32_t count)
      : info(std::move(recording)), writer(number), writers(count), file(data_path(folder, number)) {}
  BlockHeader lay_out(const StepData& step) const;
  void fill(const StepData& step, BlockHeader& block);
};

SignalFileWriter::SignalFileWriter(const std::string& folder, RecordingInfo info, std::uint32_t writer,
                                   std::uint32_t writers)
    : state_(std::make_unique<State>(folder, std::move(info), writer, writers)) {
  if (state_->file.size() == 0) {
    state_->file.append(detail::encode_file_head(state_->info.id, writer));
  }
}

SignalFileWriter::~SignalFileWriter() = default;

// The header without checksums: which part lies where.
BlockHeader SignalFileWriter::State::lay_out(const StepData& step) const {
  BlockHeader block;
  block.writer = writer;
  block.writers = writers;
  block.outcome = step.outcome;
  block.step = step.step;
  block.teacher_version = step.teacher_version;
  block.step_samples = step.step_samples;
  block.samples = {step.step_samples.first + step.rows.first, step.rows.count};
  block.temperatures = step.temperatures;
  for (const PartData& data : step.parts) {
    const bool is_of_step = info.fields[data.field].scope == FieldScope::step;
    std::int64_t& size = is_of_step ? block.step_part_bytes : block.record_bytes;
    const BlockPart part{data.field, size, data.active.dims[1], data.active.dims[2]};
    size += detail::aligned(detail::part_bytes(part, info.fields));
    block.parts.push_back(part);
  }
  return block;
}

// Records, step part and their checksums.
void SignalFileWriter::State::fill(const StepData& step, BlockHeader& block) {
  payload.assign(static_cast<std::size_t>(block.payload_bytes()), std::byte{0});
  std::byte* const step_part = payload.data() + block.samples.count * block.record_bytes;
  for (std::size_t i = 0; i < step.parts.size(); ++i) {
    const PartData& data = step.parts[i];
    const BlockPart& part = block.parts[i];
    const FieldInfo& field = info.fields[data.field];
    const bool is_of_step = field.scope == FieldScope::step;
    ATHANOR_CHECK(is_of_step || data.active.rows() == step.rows, "field {} has rows {} of {}", field.name,
                  data.active.describe(), step.rows.count);
    const Range rows = data.active.rows();
    for (std::int64_t row = rows.first; row < rows.end(); ++row) {
      const Box one = data.active.with_rows({row, 1});
      std::byte* const target =
          is_of_step ? step_part : payload.data() + (row - rows.first) * block.record_bytes;
      copy_box(one, data.memory, data.data, one, target + part.offset, bytes_of(field.type));
    }
  }
  const auto hash = [](const std::byte* data, std::int64_t size) {
    return size == 0 ? 0 : base::hash_bytes(data, static_cast<std::size_t>(size));
  };
  for (std::int64_t i = 0; i < block.samples.count; ++i) {
    block.record_checksums.push_back(hash(payload.data() + i * block.record_bytes, block.record_bytes));
  }
  block.step_part_checksum = hash(step_part, block.step_part_bytes);
}

void SignalFileWriter::append(const StepData& step) {
  State& state = *state_;
  BlockHeader block = state.lay_out(step);
  state.fill(step, block);
  state.header.clear();
  detail::encode_header(block, state.header);
  base::fault_point("record.block", static_cast<int>(state.writer));
  const BlockPlace place{state.writer, state.file.size()};
  state.file.append(state.header);
  const std::span<const std::byte> payload(state.payload);
  state.file.append(payload.first(payload.size() / 2));
  base::fault_point("record.torn", static_cast<int>(state.writer));
  state.file.append(payload.subspan(payload.size() / 2));
  state.appended.add(place, state.header);
}

BlockTable SignalFileWriter::take_durable() {
  state_->file.sync();
  return std::exchange(state_->appended, BlockTable{});
}

}  // namespace athanor::distill::signal_file
