// A recording as it lies on disk: its index, the blocks that the index has, and those behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "distill/signal_file/format.hpp"

namespace athanor::distill::signal_file {

/// What the index says of the recording, without its blocks. Throws MissingInputError when the folder is none
/// or has no recording, DataError when the index is damaged or of a newer format.
RecordingInfo read_info(const std::string& folder);

/// The description as text, for other ranks, and back. Throws DataError naming `where`.
std::string to_text(const RecordingInfo& info);
RecordingInfo info_from_text(const std::string& text, const std::string& where);

/// Whether the folder holds a recording (whole or damaged).
bool has_recording(const std::string& folder);

/// Blocks of an index to be written: a table that grows.
class BlockTable {
 public:
  /// `header`: encoded.
  void add(const BlockPlace& place, std::span<const std::byte> header);
  /// Entries of another table.
  void add_encoded(std::span<const std::byte> entries, std::int64_t count);
  std::span<const std::byte> bytes() const { return bytes_; }
  std::int64_t count() const { return count_; }
  void clear();

 private:
  std::vector<std::byte> bytes_;
  std::int64_t count_ = 0;
};

/// Replaces the index: written aside, made durable, renamed. Fault point: record.before_index. Throws
/// IoError.
void publish_index(const std::string& folder, const RecordingInfo& info, const BlockTable& blocks,
                   bool is_complete);

/// One block of a recording that is mapped into memory.
struct MappedBlock {
  BlockPlace place;
  std::int64_t step = 0;
  Range samples;
  std::span<const std::byte> header;   ///< encoded
  std::span<const std::byte> payload;  ///< records, then the step part
};

/// All blocks of one step: every writer's.
struct RecordedStep {
  std::int64_t step = 0;
  std::int64_t teacher_version = 0;
  StepOutcome outcome = StepOutcome::finite;
  Range samples;
  std::size_t kind = 0;  ///< index in MappedRecording::kinds()
  std::vector<MappedBlock> blocks;
};

/// What steps of one kind hold.
struct StepKind {
  std::vector<double> temperatures;
  std::vector<bool> has_field;  ///< by index in RecordingInfo::fields
  bool operator==(const StepKind&) const = default;
};

/// The steps of a recording that are there with the blocks of all their writers, ascending. Blocks behind the
/// index (of a job that was killed, or that runs) count when they are whole; a last step without all of its
/// blocks does not.
class MappedRecording {
 public:
  /// Throws as read_info; DataError naming the file when it is missing, shorter than the index says, of
  /// another recording, or its blocks contradict each other. Records are not looked at (see check_records).
  explicit MappedRecording(const std::string& folder);
  ~MappedRecording();
  MappedRecording(MappedRecording&&) noexcept;
  MappedRecording& operator=(MappedRecording&&) noexcept;

  const std::string& folder() const;
  const RecordingInfo& info() const;
  /// Whether the run that made it came to its end.
  bool is_complete() const;
  const std::vector<RecordedStep>& steps() const;
  const std::vector<StepKind>& kinds() const;
  /// The step that holds a sample; nullptr: none.
  const RecordedStep* step_of(std::int64_t sample) const;
  BlockHeader header_of(const MappedBlock& block) const;
  /// Compares the records of samples [first, first + count) of the block, and its step part, with their
  /// checksums. Throws DataError naming file, step and sample.
  void check_records(const MappedBlock& block, const BlockHeader& header, const Range& samples) const;
  void check_step_part(const MappedBlock& block, const BlockHeader& header) const;
  /// Asks for the pages of a step to be read ahead.
  void prefetch(const RecordedStep& step) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::distill::signal_file
