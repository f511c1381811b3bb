// Signals from a recording, in place of a teacher that runs: the job has students only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "distill/link/signal_packet.hpp"
#include "distill/signal_file/recording.hpp"
#include "parallel/communicator.hpp"
#include "parallel/point_to_point.hpp"
#include "train/signal_source_factory.hpp"
#include "train/student_objective.hpp"

namespace athanor::train {

/// What is done after a step, known when it begins. Called once for each step, in order.
using WordOfStep = std::function<distill::ControlWord(std::int64_t step, const SourceStart& start)>;

struct ReplayOptions {
  std::shared_ptr<const distill::signal_file::MappedRecording> recording;
  WordOfStep word;
};

/// A recording as the source of student number `student`. At the first step it is compared with what the
/// run's steps need, and all that they need of it with its checksums, the ranks sharing the work (collective
/// over `role`, which outlives the source): ConfigError when it does not hold a codec, layer or temperature
/// of a step, DataError when it has too few samples, is damaged, or is of other tokens.
SignalSourceFactory make_recorded_source(ReplayOptions options, std::shared_ptr<SignalOptions> signals,
                                         std::size_t student, const parallel::Communicator& role);

/// The layout that stands for the teacher where none runs: plans need a sender.
distill::RoleLayout absent_teacher(std::int64_t global_batch, std::int64_t seq);

/// The first student of a job without a teacher: it decides about saving and stopping, as a teacher does.
class LeadingStudent : public StudentObjective {
 public:
  template <typename... Arguments>
  explicit LeadingStudent(std::shared_ptr<distill::ControlWord> word, Arguments&&... arguments)
      : StudentObjective(std::forward<Arguments>(arguments)...), word_(std::move(word)) {}

  void begin_step(const ObjectiveStep& step) override;

 private:
  std::shared_ptr<distill::ControlWord> word_;
};

/// The leading student's words, on its own ranks: what `word` holds. Its rank 0 sends them to all ranks of
/// the other students. `wire` outlives the result.
WordOfStep leading_words(std::shared_ptr<const distill::ControlWord> word,
                         std::vector<int> other_students_world_ranks, parallel::PointToPoint& wire);

/// The same words on the ranks of the other students. Waiting longer than `deadline_s` throws LinkTimeout.
WordOfStep following_words(int leading_world_rank, double deadline_s, parallel::PointToPoint& wire);

}  // namespace athanor::train
