// Recordings of a teacher's signals, between the configuration and the libraries.
#pragma once

#include <memory>

#include "config/command_line.hpp"
#include "config/run_config.hpp"
#include "distill/signal_file/recording.hpp"
#include "parallel/communicator.hpp"
#include "train/objective.hpp"
#include "train/recorded_source.hpp"
#include "train/recording_source.hpp"

namespace athanor::app {

/// With a recording as distill.source: its teacher becomes the first role of the configuration. Throws
/// MissingInputError, DataError (no recording that can be read), ConfigError (a setting of the teacher
/// contradicts it, or is for one that runs).
void adopt_recorded_teacher(config::ParsedCommand& parsed);

/// Throws ConfigError or DataError when the recording of distill.source was made with other data, order or
/// tokenizer than the run's.
void check_recording(const config::RunConfig& config);

/// What distill.record writes, and about what.
train::RecordingOptions make_recording_options(const config::RunConfig& config);

/// What the checkpoints of a run say of its signals: "live", or which recording.
std::string describe_signals(const config::RunConfig& config);

}  // namespace athanor::app
