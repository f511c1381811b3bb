#include "train/training.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <random>
#include <utility>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/metrics_sink.hpp"
#include "train/objective.hpp"
#include "train/state_dict.hpp"

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

std::string file_hash(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return fmt::format("{:016x}", base::hash_string(bytes));
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
              const parallel::Communicator& role)
      : options_(options), train_set_(open_dataset(options, options.train_sources, "data.train")) {
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
    resumed_ = resume(options.resume, options.checkpoint.dir, head, *trainer_, world);
    if (resumed_) {
      head.run_id = resumed_->run_id;
    }
    // A frozen role's weights are in no checkpoint of this run: they come from where they were trained.
    if (!options.init.empty() && (!resumed_ || options.role.frozen)) {
      parallel::run_agreed(role, [&] {
        staged_.emplace(*trainer_, checkpoint::CheckpointReader(options.init), InitialWeights{});
      });
      std::move(*staged_).apply(*trainer_);
      staged_.reset();
    }
    first_step_ = trainer_->state().step;
    open_metrics(world, role);
    open_checkpoints(world, std::move(head));
    evaluation_options_.rows_per_replica = micro_batch();
    evaluation_options_.max_sequences = options.eval_batches * options.global_batch;
  }

  TrainingResult run() {
    log_start();
    trainer_->objective().start(first_step_, [this] { checkpoints_->poll(); });
    const data::BatchSampler sampler(train_set_, {options_.global_batch, micro_batch(), trainer_->replica()});
    data::Prefetcher prefetcher(sampler, trainer_->state().cursor);
    TrainingResult result;
    result.startup_s = startup_.seconds();
    result.first_step = first_step_;
    std::vector<StepMetrics> history;
    double stall_s = 0.0;
    for (std::int64_t step = first_step_ + 1; step <= options_.steps; ++step) {
      history.push_back(train_step(prefetcher, stall_s));
      trainer_->state().cursor = sampler.advance(trainer_->state().cursor);
      if (options_.eval_every > 0 && step % options_.eval_every == 0 && step < options_.steps) {
        evaluate(step);
      }
      stall_s = checkpoints_->is_due(step, history.back().save_requests) ? checkpoints_->save() : 0.0;
      result.checkpoint_s += stall_s;
    }
    trainer_->objective().finish();
    result.evaluation = evaluate(std::max(options_.steps, first_step_));
    checkpoints_->finish();
    result.checkpoint =
        checkpoints_->last_path().empty() && resumed_ ? resumed_->path : checkpoints_->last_path();
    summarise(history, result);
    return result;
  }

 private:
  // What the checkpoints say of this job.
  checkpoint::Manifest describe_run(const parallel::Communicator& world) const {
    checkpoint::Manifest head;
    head.run_id = draw_run_id(world);
    head.program = options_.program;
    head.world_size = world.size();
    head.config = options_.config_text;
    head.data = {{"train", fmt::format("{:016x}", train_set_.fingerprint())},
                 {"tokenizer", options_.tokenizer.empty() ? "" : file_hash(options_.tokenizer)}};
    if (options_.role.frozen && !options_.init.empty()) {
      const checkpoint::CheckpointReader frozen(options_.init);
      head.data["frozen"] = fmt::format("{} step {}", frozen.manifest().run_id, frozen.manifest().step);
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
    checkpoints_.emplace(std::move(job), *trainer_, world);
    if (resumed_) {
      checkpoints_->note_verified(resumed_->path);
    }
  }

  StepMetrics train_step(data::Prefetcher& prefetcher, double stall_s) {
    checkpoints_->poll();
    base::Stopwatch data_watch;
    const std::vector<data::Batch> batches = prefetcher.take();
    const double data_s = data_watch.seconds();
    base::fault_point("train.step", trainer_->grid().role().rank());
    StepMetrics metrics = trainer_->step(batches, checkpoints_->wants_save());
    metrics.times.data_s = data_s;
    metrics.times.checkpoint_s = stall_s;
    metrics.times.total_s += data_s;
    sink_->write_step(metrics);
    metrics.expert_counts.clear();
    return metrics;
  }

  std::int64_t micro_batch() const {
    const std::int64_t per_replica = options_.global_batch / trainer_->replica().count;
    return options_.role.micro_batch > 0 ? options_.role.micro_batch : per_replica;
  }

  std::vector<infer::DomainLoss> evaluate(std::int64_t step) {
    if (!valid_set_) {
      return {};
    }
    const infer::Evaluator evaluator(trainer_->model(), trainer_->grid(), evaluation_options_);
    const infer::EvaluationResult result = evaluator.evaluate(*valid_set_, &trainer_->state().balance);
    sink_->write_evaluation(step, result.domains);
    return result.domains;
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
    for (const StepMetrics& step : history) {
      for (const auto& [name, value] : step.figures) {
        result.figures[name] += value / static_cast<double>(history.size());
      }
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
  base::Stopwatch startup_;
  data::Dataset train_set_;
  std::optional<data::Dataset> valid_set_;
  std::optional<Trainer> trainer_;
  std::optional<Resumed> resumed_;
  std::optional<StagedState> staged_;
  std::int64_t first_step_ = 0;  // done before this job
  std::optional<MetricsSink> sink_;
  std::optional<JobCheckpoints> checkpoints_;
  infer::EvaluatorOptions evaluation_options_;
};

}  // namespace

TrainingResult run_training(const TrainingOptions& options, const parallel::Communicator& world,
                            const parallel::Communicator& role) {
  return TrainingRun(options, world, role).run();
}

}  // namespace athanor::train
