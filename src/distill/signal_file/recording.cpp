#include "distill/signal_file/recording.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/hash.hpp"
#include "base/mapped_file.hpp"
#include "distill/signal_file/detail/block.hpp"
#include "distill/signal_file/detail/bytes.hpp"
#include "distill/signal_file/detail/index.hpp"
#include "distill/signal_file/detail/output_file.hpp"

namespace athanor::distill::signal_file {
namespace {

namespace fs = std::filesystem;
using base::MappedFile;

std::string index_path(const std::string& folder) {
  return (fs::path(folder) / index_name).string();
}

// The index file, or why there is none.
MappedFile open_index(const std::string& folder) {
  if (!fs::is_directory(folder)) {
    throw base::MissingInputError("{} is no folder (a recording of signals was expected) check the path",
                                  folder);
  }
  if (!has_recording(folder)) {
    throw base::MissingInputError(
        "{} holds no recording of signals (there is no {}) check the path, or record with distill.record",
        folder, index_name);
  }
  return MappedFile(index_path(folder));
}

// The number in "signals-00003.bin"; nothing for other names.
std::optional<std::uint32_t> file_number(const std::string& name) {
  const std::string prefix = "signals-";
  std::uint32_t number = 0;
  if (!name.starts_with(prefix)) {
    return std::nullopt;
  }
  std::from_chars(name.data() + prefix.size(), name.data() + name.size(), number);
  return name == data_file_name(number) ? std::optional(number) : std::nullopt;
}

std::set<std::uint32_t> data_files(const std::string& folder) {
  std::set<std::uint32_t> numbers;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (const auto number = file_number(entry.path().filename().string())) {
      numbers.insert(*number);
    }
  }
  return numbers;
}

[[noreturn]] void refuse(const std::string& what, const std::string& why) {
  throw base::DataError("{} is damaged ({}) restore the recording from a copy, or record again", what, why);
}

}  // namespace

bool has_recording(const std::string& folder) {
  return fs::exists(index_path(folder));
}

RecordingInfo read_info(const std::string& folder) {
  const MappedFile file = open_index(folder);
  return detail::decode_index(file.bytes(), file.path(), false).info;
}

void BlockTable::add(const BlockPlace& place, std::span<const std::byte> header) {
  detail::put(bytes_, place.file);
  detail::put(bytes_, static_cast<std::uint32_t>(header.size()));
  detail::put(bytes_, place.offset);
  detail::put_bytes(bytes_, header);
  ++count_;
}

void BlockTable::add_encoded(std::span<const std::byte> entries, std::int64_t count) {
  detail::put_bytes(bytes_, entries);
  count_ += count;
}

void BlockTable::clear() {
  bytes_.clear();
  count_ = 0;
}

void publish_index(const std::string& folder, const RecordingInfo& info, const BlockTable& blocks,
                   bool is_complete) {
  const std::string bytes = detail::encode_index(info, is_complete, blocks.count(), blocks.bytes());
  const std::string aside = (fs::path(folder) / (std::string(".tmp-") + index_name)).string();
  detail::write_whole_file(aside, bytes);
  base::fault_point("record.before_index", 0);
  detail::rename_durably(aside, index_path(folder));
}

struct MappedRecording::State {
  std::string folder;
  MappedFile index;
  RecordingInfo info;
  bool is_complete = false;
  std::map<std::uint32_t, MappedFile> files{};
  std::vector<RecordedStep> steps{};
  std::vector<StepKind> kinds{};

  // A block with what orders it, while steps are put together.
  struct Found {
    MappedBlock block;
    BlockHeader header;
  };

  std::string path_of(std::uint32_t file) const { return (fs::path(folder) / data_file_name(file)).string(); }
  const MappedFile& open_file(std::uint32_t number);
  Found place_block(const BlockPlace& place, std::span<const std::byte> header);
  std::vector<Found> indexed_blocks(std::span<const std::byte> table, std::int64_t count);
  void find_tail(std::uint32_t number, std::int64_t offset, std::vector<Found>& found);
  void add_step(std::span<Found> blocks, bool is_last);
  std::size_t kind_of(std::span<const Found> blocks);
  void check_bytes(std::span<const std::byte> bytes, std::uint64_t checksum, const MappedBlock& block,
                   const std::string& what) const;
};

// Maps a data file of the index.
const MappedFile& MappedRecording::State::open_file(std::uint32_t number) {
  const auto known = files.find(number);
  if (known != files.end()) {
    return known->second;
  }
  const std::string path = path_of(number);
  if (!fs::exists(path)) {
    refuse(folder, fmt::format("{} is missing, the index has blocks in it", data_file_name(number)));
  }
  const MappedFile& file = files.emplace(number, MappedFile(path)).first->second;
  detail::check_file_head(file.bytes(), info.id, number, path);
  return file;
}

MappedRecording::State::Found MappedRecording::State::place_block(const BlockPlace& place,
                                                                  std::span<const std::byte> header_bytes) {
  const std::string where = fmt::format("the block at byte {} of {}", place.offset, path_of(place.file));
  Found found;
  found.header = detail::decode_header(header_bytes, info.fields, where);
  const BlockHeader& header = found.header;
  const MappedFile& file = open_file(place.file);
  const auto size = static_cast<std::int64_t>(file.bytes().size());
  if (place.offset < detail::file_head_bytes || place.offset > size ||
      header.total_bytes() > size - place.offset) {
    refuse(file.path(), fmt::format("it has {} bytes, and the block of step {} reaches from {} to {}", size,
                                    header.step, place.offset, place.offset + header.total_bytes()));
  }
  found.block = {place, header.step, header.samples,
                 header_bytes.first(static_cast<std::size_t>(header.header_bytes())),
                 file.bytes().subspan(static_cast<std::size_t>(place.offset + header.header_bytes()),
                                      static_cast<std::size_t>(header.payload_bytes()))};
  return found;
}

std::vector<MappedRecording::State::Found> MappedRecording::State::indexed_blocks(
    std::span<const std::byte> table, std::int64_t count) {
  std::vector<Found> found;
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::ssize(table) < detail::entry_bytes) {
      refuse(index.path(), "its table is cut off");
    }
    BlockPlace place;
    place.file = detail::take<std::uint32_t>(table);
    const auto size = detail::take<std::uint32_t>(table);
    place.offset = detail::take<std::int64_t>(table);
    if (size > table.size()) {
      refuse(index.path(), "its table is cut off");
    }
    found.push_back(place_block(place, table.first(size)));
    table = table.subspan(size);
  }
  return found;
}

// Blocks behind those of the index, up to the first that is not whole: a kill leaves such a one.
void MappedRecording::State::find_tail(std::uint32_t number, std::int64_t offset, std::vector<Found>& found) {
  const MappedFile& file = open_file(number);
  while (offset < static_cast<std::int64_t>(file.bytes().size())) {
    Found next;
    try {
      next = place_block({number, offset}, file.bytes().subspan(static_cast<std::size_t>(offset)));
      const std::vector<std::uint64_t>& checksums = next.header.record_checksums;
      for (std::size_t i = 0; i < checksums.size(); ++i) {
        const auto size = static_cast<std::size_t>(next.header.record_bytes);
        check_bytes(next.block.payload.subspan(i * size, size), checksums[i], next.block, "a record");
      }
      const auto step_part = static_cast<std::size_t>(next.header.step_part_bytes);
      check_bytes(next.block.payload.last(step_part), next.header.step_part_checksum, next.block,
                  "the step part");
    } catch (const base::DataError&) {
      return;
    }
    offset += next.header.total_bytes();
    found.push_back(std::move(next));
  }
}

void MappedRecording::State::check_bytes(std::span<const std::byte> bytes, std::uint64_t checksum,
                                         const MappedBlock& block, const std::string& what) const {
  const std::uint64_t own = bytes.empty() ? 0 : base::hash_bytes(bytes.data(), bytes.size());
  if (own != checksum) {
    refuse(path_of(block.place.file),
           fmt::format("the checksum of {} of step {} does not match", what, block.step));
  }
}

std::size_t MappedRecording::State::kind_of(std::span<const Found> blocks) {
  StepKind kind{blocks.front().header.temperatures, std::vector<bool>(info.fields.size(), false)};
  for (const Found& found : blocks) {
    for (const BlockPart& part : found.header.parts) {
      kind.has_field[part.field] = true;
    }
  }
  const auto known = std::find(kinds.begin(), kinds.end(), kind);
  if (known != kinds.end()) {
    return static_cast<std::size_t>(known - kinds.begin());
  }
  kinds.push_back(std::move(kind));
  return kinds.size() - 1;
}

void MappedRecording::State::add_step(std::span<Found> blocks, bool is_last) {
  const BlockHeader& first = blocks.front().header;
  const std::string what = fmt::format("the recording {}", folder);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const BlockHeader& header = blocks[i].header;
    const bool agrees = header.writers == first.writers && header.outcome == first.outcome &&
                        header.teacher_version == first.teacher_version &&
                        header.step_samples == first.step_samples &&
                        header.temperatures == first.temperatures;
    if (!agrees || (i > 0 && header.writer == blocks[i - 1].header.writer)) {
      refuse(what, fmt::format("its blocks of step {} contradict each other", first.step));
    }
  }
  if (blocks.size() < first.writers) {
    if (is_last && !is_complete) {
      return;  // its other ranks had not come so far
    }
    refuse(what, fmt::format("it has {} of {} blocks of step {}", blocks.size(), first.writers, first.step));
  }
  if (!steps.empty() && steps.back().samples.end() > first.step_samples.first) {
    refuse(what, fmt::format("steps {} and {} hold the same samples", steps.back().step, first.step));
  }
  RecordedStep step{first.step,         first.teacher_version, first.outcome,
                    first.step_samples, kind_of(blocks),       {}};
  for (const Found& found : blocks) {
    step.blocks.push_back(found.block);
  }
  steps.push_back(std::move(step));
}

MappedRecording::MappedRecording(const std::string& folder)
    : state_(std::make_unique<State>(State{folder, open_index(folder), {}})) {
  State& state = *state_;
  const detail::IndexHead head = detail::decode_index(state.index.bytes(), state.index.path(), true);
  state.info = head.info;
  state.is_complete = head.is_complete;
  std::vector<State::Found> found = state.indexed_blocks(head.table, head.num_blocks);
  std::map<std::uint32_t, std::int64_t> ends;
  for (const State::Found& block : found) {
    std::int64_t& end = ends[block.block.place.file];
    end = std::max(end, block.block.place.offset + block.header.total_bytes());
  }
  for (const std::uint32_t number : data_files(folder)) {
    const bool is_begun =
        fs::file_size(state.path_of(number)) >= static_cast<std::uintmax_t>(detail::file_head_bytes);
    if (!state.is_complete && is_begun) {
      state.find_tail(number, ends.contains(number) ? ends[number] : detail::file_head_bytes, found);
    }
  }
  const auto order = [](const State::Found& block) {
    return std::tuple(block.header.step, block.header.writer);
  };
  std::sort(found.begin(), found.end(),
            [&](const State::Found& a, const State::Found& b) { return order(a) < order(b); });
  for (std::size_t begin = 0; begin < found.size();) {
    std::size_t end = begin;
    while (end < found.size() && found[end].header.step == found[begin].header.step) {
      ++end;
    }
    state.add_step(std::span(found).subspan(begin, end - begin), end == found.size());
    begin = end;
  }
}

MappedRecording::~MappedRecording() = default;
MappedRecording::MappedRecording(MappedRecording&&) noexcept = default;
MappedRecording& MappedRecording::operator=(MappedRecording&&) noexcept = default;

const std::string& MappedRecording::folder() const {
  return state_->folder;
}
const RecordingInfo& MappedRecording::info() const {
  return state_->info;
}
bool MappedRecording::is_complete() const {
  return state_->is_complete;
}
const std::vector<RecordedStep>& MappedRecording::steps() const {
  return state_->steps;
}
const std::vector<StepKind>& MappedRecording::kinds() const {
  return state_->kinds;
}

const RecordedStep* MappedRecording::step_of(std::int64_t sample) const {
  const std::vector<RecordedStep>& steps = state_->steps;
  const auto after = std::upper_bound(
      steps.begin(), steps.end(), sample,
      [](std::int64_t value, const RecordedStep& step) { return value < step.samples.first; });
  if (after == steps.begin() || sample >= std::prev(after)->samples.end()) {
    return nullptr;
  }
  return &*std::prev(after);
}

BlockHeader MappedRecording::header_of(const MappedBlock& block) const {
  return detail::decode_header(
      block.header, state_->info.fields,
      fmt::format("the block at byte {} of {}", block.place.offset, state_->path_of(block.place.file)));
}

void MappedRecording::check_records(const MappedBlock& block, const BlockHeader& header,
                                    const Range& samples) const {
  const auto size = static_cast<std::size_t>(header.record_bytes);
  const Range common = intersect(samples, header.samples);
  for (std::int64_t sample = common.first; sample < common.end(); ++sample) {
    const auto index = static_cast<std::size_t>(sample - header.samples.first);
    state_->check_bytes(block.payload.subspan(index * size, size), header.record_checksums[index], block,
                        fmt::format("sample {}", sample));
  }
}

void MappedRecording::check_step_part(const MappedBlock& block, const BlockHeader& header) const {
  state_->check_bytes(block.payload.last(static_cast<std::size_t>(header.step_part_bytes)),
                      header.step_part_checksum, block, "the step part");
}

void MappedRecording::prefetch(const RecordedStep& step) const {
  for (const MappedBlock& block : step.blocks) {
    const auto begin = block.place.offset;
    state_->files.at(block.place.file)
        .prefetch(begin, static_cast<std::int64_t>(block.header.size() + block.payload.size()));
  }
}

}  // namespace athanor::distill::signal_file
