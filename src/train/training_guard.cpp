// What a job does about trips of the numeric guard: saves that are put off, going back, monitors.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "train/training_run.hpp"

namespace athanor::train {

// `ends`: the job ends with this step and saves in any case. With several roles cuts follow from the step
// alone: their guards leave updates out, so that what is saved has none of a trip in it.
bool TrainingRun::is_saved_after(std::int64_t step, std::int64_t save_requests, bool ends) {
  const bool is_last = step == options_.steps;
  const bool is_due = saves().is_due(step, save_requests + (ends && !is_last ? 1 : 0));
  const GuardState& state = trainer_->state().guard;
  const bool holds = stop_.is_only_role() && Guard(options_.guard).holds(state, step);
  if (!holds) {
    const bool is_made_up = is_save_put_off_;
    is_save_put_off_ = false;
    return is_due || is_made_up;
  }
  if (is_due && ends) {
    saves().protect_last();
    base::log_warning(
        "the checkpoint after step {} comes {} steps after a trip of the guard: it is marked so "
        "(guard.last_trip) "
        "and the one before it stays",
        step, step - state.last_trip);
    return true;
  }
  if (is_due && !is_save_put_off_) {
    is_save_put_off_ = true;
    base::log_warning(
        "the checkpoint due after step {} is put off (a trip of the guard at step {}, guard.hold_steps={})",
        step, state.last_trip, options_.guard.hold_steps);
  }
  return false;
}

// Back to a checkpoint from before the first of the bad steps; what was read since then is not read again.
void TrainingRun::roll_back(const data::BatchSampler& sampler, std::vector<StepMetrics>& history,
                            TrainingResult& result) {
  const std::string reason = history.back().rollback_reason;
  const std::int64_t bad_step = trainer_->state().step;
  const GuardState guard = trainer_->state().guard;
  const data::DataCursor cursor = trainer_->state().cursor;
  const std::int64_t first_bad = guard.first_bad > 0 ? guard.first_bad : bad_step;
  checkpoints_->drain();
  const std::optional<Resumed> back =
      go_back(options_.checkpoint.dir, first_bad, options_.guard.hold_steps, *trainer_, world_);
  if (!back) {
    throw base::NumericError(
        "{} and there is no checkpoint of before step {} to go back to (checkpoint.every={}) lower optim.lr "
        "or look "
        "at the data, or save more often",
        reason, first_bad, options_.checkpoint.every);
  }
  TrainState& state = trainer_->state();
  data::DataCursor next = cursor;
  for (std::int64_t i = 0; i < options_.guard.skip_batches; ++i) {
    next = sampler.advance(next);
  }
  const std::int64_t passed_over = (next.next_position - state.cursor.next_position) / options_.global_batch;
  state.cursor = next;
  state.guard = after_rollback(state.guard, guard, state.step, passed_over);
  is_save_put_off_ = false;
  rollback_note_ = fmt::format("rolled back from step {} to {}: {}", bad_step, state.step, reason);
  base::log_warning(
      "ROLLED BACK from step {} to {} ({}); {} batches are passed over (rollback {} of at most {})", bad_step,
      state.step, reason, passed_over, state.guard.rollbacks, options_.guard.max_rollbacks);
  std::erase_if(history, [&](const StepMetrics& metrics) { return metrics.step > state.step; });
  first_step_ = std::min(first_step_, state.step);
  result.first_step = first_step_;
  open_metrics(world_, role(), state.step);
}

void TrainingRun::note_monitors(StepMetrics& metrics) {
  if (!rollback_note_.empty()) {
    metrics.guard = metrics.guard.empty() ? rollback_note_ : rollback_note_ + "; " + metrics.guard;
    rollback_note_.clear();
  }
  for (const std::string& line : monitors_.note(metrics, trainer_->state().guard.losses)) {
    if (role().rank() == 0) {
      base::log_local(base::LogLevel::warning, line);
    }
  }
}

}  // namespace athanor::train
