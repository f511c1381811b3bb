// Signals that are recorded as they arrive at a student.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "data/dataset.hpp"
#include "distill/signal_file/format.hpp"
#include "parallel/communicator.hpp"
#include "train/signal_source_factory.hpp"

namespace athanor::train {

struct RecordingOptions {
  std::string folder;  ///< distill.record
  /// File in the run's folder that names the recording: only the run that began one goes on with it.
  std::string marker;
  distill::signal_file::RecordingInfo info;            ///< without id and fields
  std::shared_ptr<const data::Dataset> training_text;  ///< inputs and labels of the triples
  std::int64_t index_every = 0;                        ///< steps between two indexes, as checkpoints; 0: none
};

/// The source that `inner` opens, with every step that it gives written to `options.folder` when it is
/// released, its trailer included. `student` is an index in the job's students; `role` (its ranks) outlives
/// the source. Opening it is collective over `role` and throws CannotCreateError (a recording of another run
/// is there), and as signal_file::prepare_recording; writing throws IoError.
SignalSourceFactory make_recording_source(SignalSourceFactory inner, RecordingOptions options,
                                          std::shared_ptr<SignalOptions> signals, std::size_t student,
                                          const parallel::Communicator& role);

}  // namespace athanor::train
