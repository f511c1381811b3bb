#include "train/teacher_loss.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "base/log.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {
namespace {

int farewell_tag(const parallel::PointToPoint& wire) {
  return wire.max_tag();  // the link counts up from 0
}

}  // namespace

SignalGuard::SignalGuard(std::unique_ptr<distill::SignalSource> source, OnTeacherLoss policy,
                         const parallel::Communicator& role, std::function<void()> on_loss)
    : source_(std::move(source)), policy_(policy), role_(&role), on_loss_(std::move(on_loss)) {}

void SignalGuard::lose(std::int64_t step, const std::string& reason) {
  is_lost_ = true;
  if (role_->rank() == 0) {
    base::log_local(
        base::LogLevel::warning,
        fmt::format("TEACHER LOST at step {}: going on with labels alone, without its signals and "
                    "without checkpoints of the whole job{}{}",
                    step + 1, reason.empty() ? "" : ": ", reason));
  }
  if (on_loss_) {
    on_loss_();
  }
}

const distill::ReceivedStep* SignalGuard::wait_step(std::int64_t step, const distill::RowTags& own_rows) {
  if (is_lost_) {
    return nullptr;
  }
  const distill::ReceivedStep* received = nullptr;
  std::string reason;
  try {
    received = &source_->wait_step(step, own_rows);
  } catch (const distill::LinkTimeout& timeout) {
    reason = timeout.what();
    if (policy_ == OnTeacherLoss::stop) {
      throw TeacherLost(reason);
    }
  }
  if (policy_ == OnTeacherLoss::labels &&
      parallel::all_reduce_sum(std::int64_t{received == nullptr ? 1 : 0}, *role_) > 0) {
    lose(step, reason);
    return nullptr;
  }
  return received;
}

distill::StepOutcome SignalGuard::wait_trailer(std::int64_t step) {
  if (is_lost_) {
    return distill::StepOutcome::finite;
  }
  distill::StepOutcome outcome = distill::StepOutcome::pending;
  std::string reason;
  try {
    outcome = source_->wait_trailer(step);
  } catch (const distill::LinkTimeout& timeout) {
    reason = timeout.what();
    if (policy_ == OnTeacherLoss::stop) {
      throw TeacherLost(reason);
    }
  }
  if (policy_ == OnTeacherLoss::stop) {
    return outcome;
  }
  at::Tensor counts = at::zeros({2}, at::kLong);  // ranks that heard nothing, ranks that heard "finite"
  auto* count = counts.mutable_data_ptr<std::int64_t>();
  count[0] = outcome == distill::StepOutcome::pending ? 1 : 0;
  count[1] = outcome == distill::StepOutcome::finite ? 1 : 0;
  parallel::all_reduce_(counts, parallel::ReduceOp::sum, *role_, parallel::Traffic::other);
  if (count[0] > 0) {
    lose(step, reason);
  }
  return count[1] > 0 ? distill::StepOutcome::finite : distill::StepOutcome::skipped;
}

void SignalGuard::release(std::int64_t step) {
  if (!is_lost_) {
    source_->release(step);
  }
}

void SignalGuard::progress() {
  source_->progress();
}

void say_farewell(parallel::PointToPoint& wire, const std::vector<int>& teacher_world_ranks) {
  for (const int rank : teacher_world_ranks) {
    wire.send(rank, farewell_tag(wire), parallel::ByteBuffer(1));
  }
  wire.progress();
}

FarewellBox::FarewellBox(parallel::PointToPoint& wire, const std::vector<int>& student_world_ranks)
    : wire_(&wire) {
  for (const int rank : student_world_ranks) {
    tickets_.push_back(wire.receive(rank, farewell_tag(wire), parallel::ByteBuffer(1)));
  }
}

bool FarewellBox::has_any() {
  wire_->progress();
  return std::ranges::any_of(tickets_, [&](const auto ticket) { return wire_->is_done(ticket); });
}

}  // namespace athanor::train
