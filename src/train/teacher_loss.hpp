// A teacher that does not send in time: what its student does then, and how the teacher hears of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "distill/link/signal_source.hpp"
#include "parallel/communicator.hpp"
#include "parallel/point_to_point.hpp"

namespace athanor::train {

enum class OnTeacherLoss {
  stop,    ///< end the job with exit code 75
  labels,  ///< go on with labels alone, without the teacher for good
};

/// The job ends without its teacher, and can be started again from a checkpoint.
class TeacherLost : public base::Error {
 public:
  explicit TeacherLost(const std::string& message) : Error(base::ExitCode::requeue, message) {}
};

/// A student's source of signals that may fall silent.
class SignalGuard {
 public:
  /// `role` outlives this object. `on_loss` is called on every rank when the teacher is lost.
  SignalGuard(std::unique_ptr<distill::SignalSource> source, OnTeacherLoss policy,
              const parallel::Communicator& role, std::function<void()> on_loss);

  /// The same on all ranks of the role.
  bool is_lost() const { return is_lost_; }
  /// The signals of the step, as SignalSource::wait_step; nullptr: the teacher is lost. With `labels` the
  /// ranks agree: one that waits in vain takes the others along (collective over the role). Throws
  /// TeacherLost with `stop`.
  const distill::ReceivedStep* wait_step(std::int64_t step, const distill::RowTags& own_rows);
  /// How the teacher's step ended, as SignalSource::wait_trailer. When the teacher is lost over it and no
  /// rank knows, `skipped`: whether the signals were sound is what the trailer would have said.
  distill::StepOutcome wait_trailer(std::int64_t step);
  void release(std::int64_t step);
  void progress();
  const distill::SourceStats& stats() const { return source_->stats(); }

 private:
  void lose(std::int64_t step, const std::string& reason);

  std::unique_ptr<distill::SignalSource> source_;
  OnTeacherLoss policy_;
  const parallel::Communicator* role_;
  std::function<void()> on_loss_;
  bool is_lost_ = false;
};

/// Tells teacher ranks that this student does not listen any more.
void say_farewell(parallel::PointToPoint& wire, const std::vector<int>& teacher_world_ranks);

/// A teacher rank's ear for it.
class FarewellBox {
 public:
  /// Posts a receive from one rank of each student. `wire` outlives this object.
  FarewellBox(parallel::PointToPoint& wire, const std::vector<int>& student_world_ranks);
  /// Whether a student has gone.
  bool has_any();

 private:
  parallel::PointToPoint* wire_;
  std::vector<parallel::PointToPoint::Ticket> tickets_;
};

}  // namespace athanor::train
