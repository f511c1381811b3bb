// What a job sets up before its first step.
#include <fmt/format.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "model/transformer_config.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/objective.hpp"
#include "train/training_run.hpp"

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

}  // namespace

TrainingRun::TrainingRun(const TrainingOptions& options, const parallel::Communicator& world,
                         const parallel::Communicator& role, StopRequest& stop)
    : options_(options),
      world_(world),
      stop_(stop),
      trace_(options.trace, {options.role.name, role.rank(), options.run_dir}, world),
      train_set_(open_dataset(options, options.train_sources, "data.train")),
      monitors_(options.monitors) {
  if (!options.valid_sources.empty()) {
    valid_set_.emplace(open_dataset(options, options.valid_sources, "data.valid"));
  }
  if (train_set_.num_samples() < options.global_batch) {
    throw base::DataError(
        "data.train has {} samples of {} tokens (one batch is {}) give more text, or lower "
        "batch.global or batch.seq",
        train_set_.num_samples(), options.seq, options.global_batch);
  }
  TrainerOptions trainer{options.role, options.global_batch, options.seq, options.steps,
                         options.seed, options.guard,        {}};
  trainer.guard.bundle_dir = options.metrics_dir.empty() ? options.run_dir : options.metrics_dir;
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
  stragglers_.emplace(StragglerOptions{.score = options.straggler_score}, role);
  open_metrics(world, role, first_step_);
  open_checkpoints(world, std::move(head));
  evaluation_options_.rows_per_replica = micro_batch();
  evaluation_options_.max_sequences = options.eval_batches * options.global_batch;
  evaluation_options_.goes_on = [this] { return !stop_.agree(this->role()); };
}

void TrainingRun::load_initial_weights(const parallel::Communicator& role) {
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
checkpoint::Manifest TrainingRun::describe_run(const parallel::Communicator& world) const {
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

void TrainingRun::open_metrics(const parallel::Communicator& world, const parallel::Communicator& role,
                               std::int64_t after_step) {
  MetricsSinkOptions sink;
  const std::string& folder = options_.metrics_dir.empty() ? options_.run_dir : options_.metrics_dir;
  sink.path = role.rank() == 0 ? folder + "/metrics.jsonl" : "";
  sink.leads = world.rank() == 0;
  sink.role = options_.role.name;
  sink.first_step = after_step;
  sink.total_steps = options_.steps;
  sink.log_every = options_.log_every;
  parallel::run_agreed(world, [&] { sink_.emplace(sink); });
}

void TrainingRun::open_checkpoints(const parallel::Communicator& world, checkpoint::Manifest head) {
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

void TrainingRun::log_start() const {
  const model::ParameterCount count = model::count_parameters(options_.role.model);
  base::log_info("{}: {:.1f} M parameters, {:.1f} M active for a token; {}", options_.role.name,
                 count.total / 1e6, count.active / 1e6, trainer_->grid().describe());
  base::log_info("data: {} tokens in {} domains; a step is {} sequences of {} tokens",
                 train_set_.num_tokens(), train_set_.domain_names().size(), options_.global_batch,
                 options_.seq);
}

}  // namespace athanor::train
