#include "train/training_run.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "checkpoint/catalog.hpp"
#include "parallel/collectives/collectives.hpp"
#include "train/objective.hpp"
#include "train/teacher_loss.hpp"
#include "train/training_result.hpp"

namespace athanor::train {

TrainingResult TrainingRun::run() {
  log_start();
  TrainingResult result;
  result.startup_s = startup_.seconds();
  result.first_step = first_step_;
  std::vector<StepMetrics> history;
  bool stops = stop_.agree(world_);  // signalled while it loaded
  if (!stops) {
    trace_.start(first_step_, options_.steps);
    stops = run_steps(history, result);
    if (trainer_->objective().is_alone()) {
      end_alone(stops);
    }
    trainer_->objective().finish();
    if (!stops) {
      stops = !evaluate(std::max(options_.steps, first_step_), &result.evaluation);
    }
    checkpoints_->finish();
  }
  result.checkpoint =
      checkpoints_->last_path().empty() && resumed_ ? resumed_->path : checkpoints_->last_path();
  result.tokens = trainer_->state().tokens;
  summarise(history, result);
  result.stopped = stop_.conclude(stops, world_);
  trace_.finish();
  return result;
}

// A role that lost the others saves its own state beside the run's checkpoints, in a folder that no earlier
// job has used.
void TrainingRun::open_own_checkpoints() {
  const std::string base = fmt::format("{}/checkpoints-{}", options_.run_dir, options_.role.name);
  std::string folder = base;
  for (int number = 2; std::filesystem::exists(folder); ++number) {
    folder = fmt::format("{}-{}", base, number);
  }
  JobCheckpoints::Job job = *job_;
  job.options.dir = parallel::broadcast_string(folder, 0, role());
  own_checkpoints_.emplace(std::move(job), *trainer_, role());
}

// What to go on from when the others are lost.
std::string TrainingRun::describe_last_checkpoint() const {
  for (const checkpoint::CatalogEntry& entry : checkpoint::list_checkpoints(options_.checkpoint.dir)) {
    if (entry.status == checkpoint::CheckpointStatus::whole) {
      return fmt::format(
          "the last checkpoint of all roles is {}: give the same command again to go on from it", entry.path);
    }
  }
  return "there is no checkpoint of all roles yet: give the same command again to start over";
}

// The others cannot take part in the end of the job.
void TrainingRun::end_alone(bool stops) {
  const std::int64_t step = trainer_->state().step;
  if (!stops) {
    evaluate(step);
  }
  own_checkpoints_->finish();
  throw TeacherLost(
      fmt::format("the {} went on without its teacher and is after step {} (the teacher was lost) its own "
                  "weights are in "
                  "{}; {} (exit code 75)",
                  options_.role.name, step, own_checkpoints_->last_path(), describe_last_checkpoint()));
}

StepMetrics TrainingRun::step_or_stop(const std::vector<data::Batch>& batches) {
  try {
    return trainer_->step(batches, {saves().wants_save(), [this] { return stop_.is_wanted(); }});
  } catch (const TeacherLost& lost) {
    throw TeacherLost(fmt::format("{}; {} (exit code 75)", lost.what(), describe_last_checkpoint()));
  }
}

// Returns whether the job stops before its end; the state of its last step is then saved or being saved.
bool TrainingRun::run_steps(std::vector<StepMetrics>& history, TrainingResult& result) {
  trainer_->objective().start(first_step_, [this] { checkpoints_->poll(); });
  const data::BatchSampler sampler(train_set_, {options_.global_batch, micro_batch(), trainer_->replica()});
  std::optional<data::Prefetcher> prefetcher(std::in_place, sampler, trainer_->state().cursor);
  bool stops = !make_up_evaluation() && stop_.is_only_role();
  double stall_s = 0.0;
  for (std::int64_t step = first_step_ + 1; step <= options_.steps && !stops; ++step) {
    history.push_back(train_step(*prefetcher, stall_s));
    trainer_->state().cursor = sampler.advance(trainer_->state().cursor);
    if (!history.back().rollback_reason.empty()) {
      roll_back(sampler, history, result);
      step = trainer_->state().step;
      prefetcher.emplace(sampler, trainer_->state().cursor);
      stall_s = 0.0;
      continue;
    }
    const bool is_last = step == options_.steps;
    stops = !is_last && is_stop_agreed(history.back());
    if (!is_last && !stops && is_evaluated_after(step)) {
      stops = !evaluate(step) && stop_.is_only_role();
    }
    const bool is_saved = is_saved_after(step, history.back().save_requests, is_last || stops);
    stall_s = is_saved ? saves().save() : 0.0;
    result.checkpoint_s += stall_s;
    stop_.times().note_save(saves().longest_save_s());
    if (is_saved && !is_last && !stops && stop_.is_only_role()) {
      stops = stop_.agree(role());  // a save may take long, and nothing would be gained by another step
    }
  }
  return stops;
}

// Of several roles only the leading one decides, before a step; its word comes with the step's signals.
bool TrainingRun::is_stop_agreed(const StepMetrics& metrics) const {
  return metrics.stop_requests > 0 || (stop_.is_only_role() && metrics.late_stop_requests > 0);
}

bool TrainingRun::is_evaluated_after(std::int64_t step) const {
  return options_.eval_every > 0 && step % options_.eval_every == 0;
}

// The evaluation of the loaded state, when the job before this one stopped in it. False: broken off again.
bool TrainingRun::make_up_evaluation() {
  if (first_step_ == 0 || first_step_ >= options_.steps || !is_evaluated_after(first_step_)) {
    return true;
  }
  const std::int64_t is_there = sink_->had_evaluation() ? 1 : 0;  // known to one rank
  return parallel::all_reduce_max(is_there, role()) > 0 || evaluate(first_step_);
}

// The slowest rank of the last steps, when it is time to look.
SlowestRank TrainingRun::look_for_stragglers(std::int64_t step) {
  stragglers_->note_step();
  const std::vector<StragglerScore> scores =
      step % options_.log_every == 0 ? stragglers_->compare(role()) : std::vector<StragglerScore>{};
  return scores.empty() ? SlowestRank{}
                        : SlowestRank{scores[0].rank, scores[0].score, std::string(scores[0].phase)};
}

StepMetrics TrainingRun::train_step(data::Prefetcher& prefetcher, double stall_s) {
  const base::Stopwatch watch;
  checkpoints_->poll();
  base::Stopwatch data_watch;
  const std::vector<data::Batch> batches = [&] {
    const base::ScopedSpan span(base::SpanKind::wait, "data");
    return prefetcher.take();
  }();
  const double data_s = data_watch.seconds();
  base::fault_point("train.step", trainer_->grid().role().rank());
  StepMetrics metrics = step_or_stop(batches);
  if (trainer_->objective().is_alone() && !own_checkpoints_) {
    open_own_checkpoints();
  }
  metrics.times.data_s = data_s;
  metrics.times.checkpoint_s = stall_s;
  metrics.times.total_s += data_s;
  note_monitors(metrics);
  metrics.slowest = look_for_stragglers(metrics.step);
  sink_->write_step(metrics);
  metrics.expert_counts.clear();
  if (options_.observe_step) {
    options_.observe_step(metrics);
  }
  stop_.times().note_step(watch.seconds());
  return metrics;
}

std::int64_t TrainingRun::micro_batch() const {
  const std::int64_t per_replica = options_.global_batch / trainer_->replica().count;
  return options_.role.micro_batch > 0 ? options_.role.micro_batch : per_replica;
}

// False: broken off, because a stop is asked for; the same on all ranks of the role.
bool TrainingRun::evaluate(std::int64_t step, std::vector<infer::DomainLoss>* losses) {
  if (!valid_set_) {
    return true;
  }
  const base::ScopedSpan span(base::SpanKind::phase, "evaluation");
  base::fault_point("train.evaluate", role().rank());
  const infer::Evaluator evaluator(trainer_->model(), trainer_->grid(), evaluation_options_);
  const infer::EvaluationResult result = evaluator.evaluate(*valid_set_, &trainer_->state().balance);
  if (!result.is_complete) {
    base::log_info("the evaluation after step {} is broken off: the job is asked to stop", step);
    return false;
  }
  sink_->write_evaluation(step, result.domains);
  if (losses != nullptr) {
    *losses = result.domains;
  }
  return true;
}

}  // namespace athanor::train
