#include "train/training.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <utility>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "checkpoint/catalog.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/metrics_sink.hpp"
#include "train/objective.hpp"
#include "train/state_dict.hpp"
#include "train/teacher_loss.hpp"

namespace athanor::train {
namespace {

// A number nobody else has: tells the files of two runs apart.
std::string draw_run_id(const parallel::Communicator& world) {
  std::string id;
  if (world.rank() == 0) {
    std::random_device device;
    id = fmt::format("{:08x}{:08x}", device(), device());
  }
  return parallel::broadcast_string(id, 0, world);
}

data::Dataset open_dataset(const TrainingOptions& options, const std::vector<data::SourceSpec>& sources,
                           const char* option) {
  data::DatasetOptions dataset{sources, options.seq, options.seed, options.reset_attention};
  data::Dataset opened(dataset);
  if (opened.max_token_id() >= options.role.model.vocab_size) {
    throw base::DataError(
        "{} holds token id {} (model.vocab_size is {}) use the tokenizer that the model was set up "
        "for, or a larger vocabulary",
        option, opened.max_token_id(), options.role.model.vocab_size);
  }
  return opened;
}

// The run while it trains: what the loop and its closing share.
class TrainingRun {
 public:
  TrainingRun(const TrainingOptions& options, const parallel::Communicator& world,
              const parallel::Communicator& role, StopRequest& stop)
      : options_(options),
        world_(world),
        stop_(stop),
        train_set_(open_dataset(options, options.train_sources, "data.train")) {
    if (!options.valid_sources.empty()) {
      valid_set_.emplace(open_dataset(options, options.valid_sources, "data.valid"));
    }
    if (train_set_.num_samples() < options.global_batch) {
      throw base::DataError(
          "data.train has {} samples of {} tokens (one batch is {}) give more text, or lower "
          "batch.global or batch.seq",
          train_set_.num_samples(), options.seq, options.global_batch);
    }
    TrainerOptions trainer{options.role, options.global_batch, options.seq, options.steps, options.seed};
    trainer_.emplace(trainer, role, options.make_objective);
    checkpoint::Manifest head = describe_run(world);
    base::fault_point("train.load", world.rank());
    resumed_ = resume(options.resume, options.checkpoint.dir, head, *trainer_, world);
    if (resumed_) {
      head.run_id = resumed_->run_id;
    }
    // A frozen role's weights are in no checkpoint of this run: they come from where they were trained.
    if (!options.init.empty() && (!resumed_ || options.role.frozen)) {
      load_initial_weights(role);
    }
    first_step_ = trainer_->state().step;
    open_metrics(world, role);
    open_checkpoints(world, std::move(head));
    evaluation_options_.rows_per_replica = micro_batch();
    evaluation_options_.max_sequences = options.eval_batches * options.global_batch;
    evaluation_options_.goes_on = [this] { return !stop_.agree(this->role()); };
  }

  TrainingResult run() {
    log_start();
    TrainingResult result;
    result.startup_s = startup_.seconds();
    result.first_step = first_step_;
    std::vector<StepMetrics> history;
    bool stops = stop_.agree(world_);  // signalled while it loaded
    if (!stops) {
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
    summarise(history, result);
    result.stopped = stop_.conclude(stops, world_);
    return result;
  }

 private:
  void load_initial_weights(const parallel::Communicator& role) {
    std::optional<checkpoint::CheckpointReader> reader;
    parallel::run_agreed(role, [&] {
      reader.emplace(options_.init);
      if (!options_.shrink) {
        check_same_shapes(*trainer_, *reader);
        staged_.emplace(*trainer_, *reader, InitialWeights{});
      }
    });
    if (options_.shrink) {
      start_from_larger(*trainer_, *reader, *options_.shrink);
    } else {
      std::move(*staged_).apply(*trainer_);
      staged_.reset();
    }
  }

  // What the checkpoints say of this job.
  checkpoint::Manifest describe_run(const parallel::Communicator& world) const {
    checkpoint::Manifest head;
    head.run_id = draw_run_id(world);
    head.program = options_.program;
    head.world_size = world.size();
    head.config = options_.config_text;
    head.data = {{"train", fmt::format("{:016x}", train_set_.fingerprint())},
                 {"tokenizer", options_.tokenizer.empty() ? "" : file_hash(options_.tokenizer)}};
    if (!options_.signals.empty()) {
      head.data["signals"] = options_.signals;
    }
    if (options_.role.frozen && !options_.init.empty()) {
      const checkpoint::CheckpointReader frozen(options_.init);
      head.data["frozen"] =
          fmt::format("{} step {}{}", frozen.manifest().run_id, frozen.manifest().step,
                      options_.shrink ? fmt::format(" {}", describe_shrink(*options_.shrink)) : "");
    }
    return head;
  }

  void open_metrics(const parallel::Communicator& world, const parallel::Communicator& role) {
    MetricsSinkOptions sink;
    const std::string& folder = options_.metrics_dir.empty() ? options_.run_dir : options_.metrics_dir;
    sink.path = role.rank() == 0 ? folder + "/metrics.jsonl" : "";
    sink.leads = world.rank() == 0;
    sink.role = options_.role.name;
    sink.first_step = first_step_;
    sink.total_steps = options_.steps;
    sink.log_every = options_.log_every;
    parallel::run_agreed(world, [&] { sink_.emplace(sink); });
  }

  void open_checkpoints(const parallel::Communicator& world, checkpoint::Manifest head) {
    JobCheckpoints::Job job{options_.checkpoint, std::move(head), {}, options_.steps};
    if (!options_.tokenizer.empty()) {
      job.extra_files.emplace_back(checkpoint::tokenizer_file, options_.tokenizer);
    }
    job_ = job;
    checkpoints_.emplace(std::move(job), *trainer_, world);
    if (resumed_) {
      checkpoints_->note_verified(resumed_->path);
    }
  }

  const parallel::Communicator& role() const { return trainer_->grid().role(); }

  // A role that lost the others saves its own state beside the run's checkpoints, in a folder that no earlier
  // job has used.
  void open_own_checkpoints() {
    const std::string base = fmt::format("{}/checkpoints-{}", options_.run_dir, options_.role.name);
    std::string folder = base;
    for (int number = 2; std::filesystem::exists(folder); ++number) {
      folder = fmt::format("{}-{}", base, number);
    }
    JobCheckpoints::Job job = *job_;
    job.options.dir = parallel::broadcast_string(folder, 0, role());
    own_checkpoints_.emplace(std::move(job), *trainer_, role());
  }

  // Those of the whole job, or of a role that lost the others.
  JobCheckpoints& saves() { return own_checkpoints_ ? *own_checkpoints_ : *checkpoints_; }

  // What to go on from when the others are lost.
  std::string describe_last_checkpoint() const {
    for (const checkpoint::CatalogEntry& entry : checkpoint::list_checkpoints(options_.checkpoint.dir)) {
      if (entry.status == checkpoint::CheckpointStatus::whole) {
        return fmt::format(
            "the last checkpoint of all roles is {}: give the same command again to go on from it",
            entry.path);
      }
    }
    return "there is no checkpoint of all roles yet: give the same command again to start over";
  }

  // The others cannot take part in the end of the job.
  [[noreturn]] void end_alone(bool stops) {
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

  StepMetrics step_or_stop(const std::vector<data::Batch>& batches) {
    try {
      return trainer_->step(batches, {saves().wants_save(), [this] { return stop_.is_wanted(); }});
    } catch (const TeacherLost& lost) {
      throw TeacherLost(fmt::format("{}; {} (exit code 75)", lost.what(), describe_last_checkpoint()));
    }
  }

  // Returns whether the job stops before its end; the state of its last step is then saved or being saved.
  bool run_steps(std::vector<StepMetrics>& history, TrainingResult& result) {
    trainer_->objective().start(first_step_, [this] { checkpoints_->poll(); });
    const data::BatchSampler sampler(train_set_, {options_.global_batch, micro_batch(), trainer_->replica()});
    data::Prefetcher prefetcher(sampler, trainer_->state().cursor);
    bool stops = !make_up_evaluation() && stop_.is_only_role();
    double stall_s = 0.0;
    for (std::int64_t step = first_step_ + 1; step <= options_.steps && !stops; ++step) {
      history.push_back(train_step(prefetcher, stall_s));
      trainer_->state().cursor = sampler.advance(trainer_->state().cursor);
      const bool is_last = step == options_.steps;
      stops = !is_last && is_stop_agreed(history.back());
      if (!is_last && !stops && is_evaluated_after(step)) {
        stops = !evaluate(step) && stop_.is_only_role();
      }
      const bool is_saved = saves().is_due(step, history.back().save_requests + (stops ? 1 : 0));
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
  bool is_stop_agreed(const StepMetrics& metrics) const {
    return metrics.stop_requests > 0 || (stop_.is_only_role() && metrics.late_stop_requests > 0);
  }

  bool is_evaluated_after(std::int64_t step) const {
    return options_.eval_every > 0 && step % options_.eval_every == 0;
  }

  // The evaluation of the loaded state, when the job before this one stopped in it. False: broken off again.
  bool make_up_evaluation() {
    if (first_step_ == 0 || first_step_ >= options_.steps || !is_evaluated_after(first_step_)) {
      return true;
    }
    const std::int64_t is_there = sink_->had_evaluation() ? 1 : 0;  // known to one rank
    return parallel::all_reduce_max(is_there, role()) > 0 || evaluate(first_step_);
  }

  StepMetrics train_step(data::Prefetcher& prefetcher, double stall_s) {
    const base::Stopwatch watch;
    checkpoints_->poll();
    base::Stopwatch data_watch;
    const std::vector<data::Batch> batches = prefetcher.take();
    const double data_s = data_watch.seconds();
    base::fault_point("train.step", trainer_->grid().role().rank());
    StepMetrics metrics = step_or_stop(batches);
    if (trainer_->objective().is_alone() && !own_checkpoints_) {
      open_own_checkpoints();
    }
    metrics.times.data_s = data_s;
    metrics.times.checkpoint_s = stall_s;
    metrics.times.total_s += data_s;
    sink_->write_step(metrics);
    metrics.expert_counts.clear();
    if (options_.observe_step) {
      options_.observe_step(metrics);
    }
    stop_.times().note_step(watch.seconds());
    return metrics;
  }

  std::int64_t micro_batch() const {
    const std::int64_t per_replica = options_.global_batch / trainer_->replica().count;
    return options_.role.micro_batch > 0 ? options_.role.micro_batch : per_replica;
  }

  // False: broken off, because a stop is asked for; the same on all ranks of the role.
  bool evaluate(std::int64_t step, std::vector<infer::DomainLoss>* losses = nullptr) {
    if (!valid_set_) {
      return true;
    }
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

  void log_start() const {
    const model::ParameterCount count = model::count_parameters(options_.role.model);
    base::log_info("{}: {:.1f} M parameters, {:.1f} M active for a token; {}", options_.role.name,
                   count.total / 1e6, count.active / 1e6, trainer_->grid().describe());
    base::log_info("data: {} tokens in {} domains; a step is {} sequences of {} tokens",
                   train_set_.num_tokens(), train_set_.domain_names().size(), options_.global_batch,
                   options_.seq);
  }

  void summarise(const std::vector<StepMetrics>& history, TrainingResult& result) {
    result.steps = static_cast<std::int64_t>(history.size());
    result.tokens = trainer_->state().tokens;
    if (history.empty()) {
      result.first_loss = result.last_loss = std::numeric_limits<double>::quiet_NaN();
      return;
    }
    const std::size_t tail = std::min<std::size_t>(10, history.size());
    std::vector<double> rates;
    std::map<std::string, double> counts;
    for (const StepMetrics& step : history) {
      for (const auto& [name, value] : step.figures) {
        result.figures[name] += value;
        counts[name] += 1.0;
      }
    }
    for (auto& [name, value] : result.figures) {
      value /= counts[name];  // some steps have figures that others have not
    }
    for (std::size_t i = 0; i < history.size(); ++i) {
      rates.push_back(history[i].tokens_per_s);
      if (i + tail >= history.size()) {
        result.last_loss += history[i].loss / static_cast<double>(tail);
        result.expert_use_std += history[i].expert_use_std / static_cast<double>(tail);
      }
    }
    std::nth_element(rates.begin(), rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2),
                     rates.end());
    result.tokens_per_s = rates[rates.size() / 2];
    result.first_loss = history.front().loss;
    result.peak_rss_bytes = history.back().peak_rss_bytes;
  }

  const TrainingOptions& options_;
  const parallel::Communicator& world_;
  StopRequest& stop_;
  base::Stopwatch startup_;
  data::Dataset train_set_;
  std::optional<data::Dataset> valid_set_;
  std::optional<Trainer> trainer_;
  std::optional<Resumed> resumed_;
  std::optional<StagedState> staged_;
  std::int64_t first_step_ = 0;  // done before this job
  std::optional<MetricsSink> sink_;
  std::optional<JobCheckpoints::Job> job_;  // what the saves of this job say of it
  std::optional<JobCheckpoints> checkpoints_;
  std::optional<JobCheckpoints> own_checkpoints_;  // of a role that lost the others
  infer::EvaluatorOptions evaluation_options_;
};

// The last line of a job that stops early.
std::string describe_stop(const TrainingResult& result) {
  const std::string after = result.steps > 0 ? fmt::format("after step {}", result.first_step + result.steps)
                                             : "before the first step of this job";
  const std::string saved =
      result.checkpoint.empty() ? "no checkpoint was made" : "saved in " + result.checkpoint;
  return fmt::format("STOPPED {} ({}): {}; give the same command again to go on (exit code 75)", after,
                     result.stopped, saved);
}

}  // namespace

std::string file_hash(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return fmt::format("{:016x}", base::hash_string(bytes));
}

TrainingResult run_training(const TrainingOptions& options, const parallel::Communicator& world,
                            const parallel::Communicator& role) {
  StopRequest stop(options.stop, world, role);
  TrainingResult result;
  if (stop.agree(world)) {  // signalled before there was anything
    result.first_loss = result.last_loss = std::numeric_limits<double>::quiet_NaN();
    result.stopped = stop.conclude(true, world);
  } else {
    result = TrainingRun(options, world, role, stop).run();
  }
  if (!result.stopped.empty()) {
    base::log_info("{}", describe_stop(result));
  }
  return result;
}

}  // namespace athanor::train
