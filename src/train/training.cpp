#include "train/training.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/error.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "parallel/run_agreed.hpp"
#include "train/metrics_sink.hpp"
#include "train/weights.hpp"

namespace athanor::train {
namespace {

void prepare_run_folder(const TrainingOptions& options) {
  std::error_code error;
  std::filesystem::create_directories(options.run_dir, error);
  std::ofstream config(options.run_dir + "/config.ini", std::ios::trunc);
  config << options.config_text << std::flush;
  if (error || !config) {
    throw base::CannotCreateError("run.dir={} cannot be written ({}) choose a folder you may write to",
                                  options.run_dir, error ? error.message() : "config.ini cannot be created");
  }
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
  TrainingRun(const TrainingOptions& options, const parallel::Communicator& role)
      : options_(options),
        role_(role),
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
    parallel::run_agreed(role, [&] {
      if (role.rank() == 0) {
        prepare_run_folder(options);
      }
    });
    TrainerOptions trainer{options.role, options.global_batch, options.seq, options.steps, options.seed};
    trainer_.emplace(trainer, role);
    MetricsSinkOptions sink;
    sink.path = role.rank() == 0 ? options.run_dir + "/metrics.jsonl" : "";
    sink.total_steps = options.steps;
    sink.log_every = options.log_every;
    sink_.emplace(sink);
    evaluation_options_.rows_per_replica = micro_batch();
    evaluation_options_.max_sequences = options.eval_batches * options.global_batch;
  }

  TrainingResult run() {
    log_start();
    const data::BatchSampler sampler(train_set_, {options_.global_batch, micro_batch(), trainer_->replica()});
    data::Prefetcher prefetcher(sampler, trainer_->state().cursor);
    TrainingResult result;
    result.startup_s = startup_.seconds();
    std::vector<StepMetrics> history;
    for (std::int64_t step = 0; step < options_.steps; ++step) {
      base::Stopwatch data_watch;
      const std::vector<data::Batch> batches = prefetcher.take();
      const double data_s = data_watch.seconds();
      StepMetrics metrics = trainer_->step(batches);
      metrics.times.data_s = data_s;
      metrics.times.total_s += data_s;
      trainer_->state().cursor = sampler.advance(trainer_->state().cursor);
      sink_->write_step(metrics);
      metrics.expert_counts.clear();
      history.push_back(std::move(metrics));
      if (options_.eval_every > 0 && (step + 1) % options_.eval_every == 0 && step + 1 < options_.steps) {
        evaluate(step + 1);
      }
    }
    result.evaluation = evaluate(options_.steps);
    save_weights(options_.run_dir, trainer_->parameters(), trainer_->state().balance, role_);
    result.weights_path = options_.run_dir + "/model.safetensors";
    summarise(history, result);
    return result;
  }

 private:
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

  static void summarise(const std::vector<StepMetrics>& history, TrainingResult& result) {
    result.steps = static_cast<std::int64_t>(history.size());
    if (history.empty()) {
      return;
    }
    const std::size_t tail = std::min<std::size_t>(10, history.size());
    std::vector<double> rates;
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
    result.tokens = history.back().tokens;
    result.peak_rss_bytes = history.back().peak_rss_bytes;
  }

  const TrainingOptions& options_;
  const parallel::Communicator& role_;
  base::Stopwatch startup_;
  data::Dataset train_set_;
  std::optional<data::Dataset> valid_set_;
  std::optional<Trainer> trainer_;
  std::optional<MetricsSink> sink_;
  infer::EvaluatorOptions evaluation_options_;
};

}  // namespace

TrainingResult run_training(const TrainingOptions& options, const parallel::Communicator& role) {
  return TrainingRun(options, role).run();
}

}  // namespace athanor::train
