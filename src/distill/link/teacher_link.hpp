// The stream of signals from teacher ranks to student ranks while both train.
//
// A step on the sender: begin_step (waits for credit), send_rows for each micro-batch in any order,
// send_step_fields if the step has such fields, end_step. Nothing in between waits: the receivers have posted
// every buffer before. All calls move transfers along; long computations call progress() now and then.
// A PointToPoint serves one run of the link: receives that are posted when a receiver ends stay with it until
// it is destroyed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "distill/link/link_plan.hpp"
#include "distill/link/signal_packet.hpp"
#include "distill/link/signal_source.hpp"
#include "parallel/point_to_point.hpp"

namespace athanor::distill {

/// The plan of each step, the same on both ends: which fields flow may change with the step (phases, a head
/// that is sent once). Return the same object for equal plans, as routes are computed once for each object.
using PlanOfStep = std::function<std::shared_ptr<const LinkPlan>(std::int64_t step)>;

struct LinkOptions {
  std::int64_t window = 2;      ///< steps a teacher may be ahead (receiver only)
  std::int64_t first_step = 0;  ///< the run's next step, both ends
  std::int64_t end_step = 0;    ///< behind the last step (receiver only): later ones get no credit
  double deadline_s = 600.0;    ///< longest wait
  /// Called between two looks of every wait, for what others may wait for meanwhile (a verdict on a cut by
  /// the rank that waits here). Must not wait itself.
  std::function<void()> while_waiting{};
  /// false: every call of the sender returns when what it sent has left (sender only).
  bool overlap_sends = true;
};

/// What a teacher rank says of a step when it begins.
struct StepStart {
  std::int64_t step = 0;
  std::int64_t teacher_version = 0;  ///< updates made so far
  ControlWord control = ControlWord::go;
};

/// A field's tensor of this rank, contiguous, in host memory; read only during the call.
struct FieldView {
  std::string_view name;
  std::span<const std::byte> bytes;
};

struct SenderStats {
  std::int64_t steps = 0;       ///< ended
  std::int64_t packets = 0;     ///< handed over, trailers included
  std::int64_t sent_bytes = 0;  ///< of packets to other ranks, headers included
  std::int64_t last_step_sent_bytes = 0;
  double wait_s = 0.0;  ///< spent waiting for credit
  double last_step_wait_s = 0.0;
};

/// A teacher rank's end of the link to all students. Fault points: link.begin_step, link.send_rows,
/// link.end_step.
class SignalSender {
 public:
  /// `role_rank` of the plans' sender; one plan for each student. `wire` outlives this object.
  SignalSender(parallel::PointToPoint& wire, int role_rank, std::vector<PlanOfStep> students,
               const LinkOptions& options);
  ~SignalSender();
  SignalSender(const SignalSender&) = delete;
  SignalSender& operator=(const SignalSender&) = delete;

  /// Waits for the credit of all routes. Throws LinkTimeout naming the step and the receivers that did not
  /// grant it within the deadline, CommError when a receiver's plan is another. Steps come in order.
  void begin_step(const StepStart& start);
  /// Whether a student needs this field in the step that has begun.
  bool wants(std::string_view name) const;
  /// Sends one micro-batch of this rank's rows: `tags` of its rows, and each field that is wanted row-wise as
  /// [rows of the micro-batch, positions, columns]. Views of fields that nobody wants are ignored.
  void send_rows(std::int64_t micro_batch, const RowTags& tags, const std::vector<FieldView>& fields);
  /// Sends the fields of the whole step that are wanted; only in steps that have some.
  void send_step_fields(const std::vector<FieldView>& fields);
  /// Sends the trailer. Throws InternalError when parts of the step were not sent.
  void end_step(StepOutcome outcome);
  /// Moves transfers along.
  void progress();
  /// Completes all sends. Throws LinkTimeout after the deadline.
  void finish();
  const SenderStats& stats() const;

 private:
  void leave();
  struct State;
  std::unique_ptr<State> state_;
};

/// A student rank's end of the link. Fault points: link.wait_step, link.release.
class SignalReceiver final : public SignalSource {
 public:
  /// `role_rank` of the plan's receiver. Posts the receives of the first steps and grants their credit.
  /// `wire` outlives this object.
  SignalReceiver(parallel::PointToPoint& wire, int role_rank, PlanOfStep plan, const LinkOptions& options);
  ~SignalReceiver() override;
  SignalReceiver(const SignalReceiver&) = delete;
  SignalReceiver& operator=(const SignalReceiver&) = delete;

  const ReceivedStep& wait_step(std::int64_t step, const RowTags& own_rows) override;
  StepOutcome wait_trailer(std::int64_t step) override;
  void release(std::int64_t step) override;
  void progress() override;
  const SourceStats& stats() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Bytes of one credit on the wire.
inline constexpr std::int64_t credit_bytes = 24;

}  // namespace athanor::distill
