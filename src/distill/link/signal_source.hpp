// Where a student's signals come from: a teacher that runs now, or a recording of one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "distill/link/signal_packet.hpp"

namespace athanor::distill {

/// The other end did not answer within the deadline: it is dead, stuck or too slow, but nothing was wrong.
class LinkTimeout : public base::CommError {
  using base::CommError::CommError;
};

/// A field as this rank needs it: contiguous, [rows, positions, columns] of its box; padding is zero bytes.
struct ReceivedField {
  std::string name;
  std::array<std::int64_t, 3> shape{};
  std::int64_t element_bytes = 1;
  std::span<const std::byte> bytes;
};

/// The signals of one step.
struct ReceivedStep {
  std::int64_t step = 0;
  std::int64_t teacher_version = 0;  ///< updates that the teacher had made
  ControlWord control = ControlWord::go;
  std::vector<ReceivedField> fields;

  /// Throws InternalError when this step has no such field.
  const ReceivedField& field(std::string_view name) const;
};

/// What a source has counted since it was made.
struct SourceStats {
  std::int64_t steps = 0;           ///< released
  std::int64_t packets = 0;         ///< taken, trailers included
  std::int64_t received_bytes = 0;  ///< of packets from other ranks, headers included
  std::int64_t sent_bytes = 0;      ///< of credits to other ranks
  std::int64_t last_step_received_bytes = 0;
  double wait_s = 0.0;  ///< spent waiting for packets and trailers
  double last_step_wait_s = 0.0;
};

/// Gives steps in order, each as wait_step, wait_trailer, release. Every rank of a student has one.
class SignalSource {
 public:
  virtual ~SignalSource() = default;
  /// Waits for the signals of the next step. `own_rows` tags all rows of this rank; those that came with the
  /// signals are compared with it. The result holds until the next call. Throws CommError when packets are
  /// bad, LinkTimeout when they do not come in time, DataError when the teacher read other tokens.
  virtual const ReceivedStep& wait_step(std::int64_t step, const RowTags& own_rows) = 0;
  /// Waits until the teacher's own step has ended; needed before the student's update. Throws CommError.
  virtual StepOutcome wait_trailer(std::int64_t step) = 0;
  /// The step's packets are no longer needed (its assembled fields stay until the next wait_step).
  virtual void release(std::int64_t step) = 0;
  /// Moves transfers along; to be called now and then during long computations.
  virtual void progress() = 0;
  virtual const SourceStats& stats() const = 0;

 protected:
  SignalSource() = default;
  SignalSource(const SignalSource&) = default;
  SignalSource& operator=(const SignalSource&) = default;
};

}  // namespace athanor::distill
