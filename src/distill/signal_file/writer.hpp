// Writing a recording: one rank makes the folder ready, then every rank appends blocks to a file of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "distill/signal_file/format.hpp"
#include "distill/signal_file/recording.hpp"

namespace athanor::distill::signal_file {

/// A recording to go on with.
struct PreparedRecording {
  RecordingInfo info;                 ///< with its id, and the fields of all jobs so far
  BlockTable blocks;                  ///< of the steps that stay
  std::int64_t next_step = 0;         ///< behind the last step that stays; 0 when none does
  std::set<std::string> kept_fields;  ///< that some step that stays has
};

/// Makes `folder` ready for the steps [first_step, end_step). Without a recording there it begins one, with
/// `info.id`. One that is there keeps its steps before `first_step`; the later ones are removed, as they
/// come again. Fields of `info` that are new are added. One process does this, before others open their
/// files. Throws CannotCreateError (no folder can be made there; it holds files of an index that is gone),
/// ConfigError (the recording is of other data, another teacher, or has other columns of a field), IoError,
/// and as MappedRecording.
PreparedRecording prepare_recording(const std::string& folder, const RecordingInfo& info,
                                    std::int64_t first_step, std::int64_t end_step);

/// What a rank has of one field in a step.
struct PartData {
  std::uint32_t field = 0;
  Box memory;                       ///< what `data` holds; rows count within the step
  Box active;                       ///< what is written: all of the rank's rows, or row 0 of a step field
  const std::byte* data = nullptr;  ///< contiguous
};

/// What a rank has of a step.
struct StepData {
  std::int64_t step = 0;
  std::int64_t teacher_version = 0;
  StepOutcome outcome = StepOutcome::finite;
  Range step_samples;
  Range rows;  ///< of this rank, within the step
  std::vector<double> temperatures;
  std::vector<PartData> parts;
};

/// Appends blocks to data file number `writer`. Fault points, by writer: record.block (before a block),
/// record.torn (within it).
class SignalFileWriter {
 public:
  /// `info` and the folder as prepare_recording left them. Throws IoError.
  SignalFileWriter(const std::string& folder, RecordingInfo info, std::uint32_t writer,
                   std::uint32_t writers);
  ~SignalFileWriter();
  SignalFileWriter(const SignalFileWriter&) = delete;
  SignalFileWriter& operator=(const SignalFileWriter&) = delete;

  /// Throws IoError.
  void append(const StepData& step);
  /// What was appended since the last call, durable now. Throws IoError.
  BlockTable take_durable();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::distill::signal_file
