// The pretraining job: data, training steps, evaluation, metrics, checkpoints.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "infer/evaluator.hpp"
#include "parallel/communicator.hpp"
#include "train/guard.hpp"
#include "train/job_checkpoints.hpp"
#include "train/monitors.hpp"
#include "train/stop_request.hpp"
#include "train/student_weights.hpp"
#include "train/trace.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

/// The whole job as values; every path is checked before any long work.
struct TrainingOptions {
  std::string run_dir;      ///< exists; metrics.jsonl and checkpoints/ go there
  std::string program;      ///< name and version, for the checkpoints
  std::string config_text;  ///< resolved configuration, kept in every checkpoint
  std::string tokenizer;    ///< tokenizer model, copied into every checkpoint; empty: none
  std::string signals;      ///< "live", or which recording a student learns from; empty: no distillation
  std::uint64_t seed = 0;
  RoleOptions role;
  std::vector<data::SourceSpec> train_sources;
  std::vector<data::SourceSpec> valid_sources;  ///< may be empty: no evaluation
  bool reset_attention = false;
  std::int64_t global_batch = 8;
  std::int64_t seq = 256;
  std::int64_t steps = 100;
  std::int64_t log_every = 10;
  std::int64_t eval_every = 0;    ///< steps; 0: only at the end
  std::int64_t eval_batches = 0;  ///< batches per domain; 0: all
  TraceOptions trace;
  CheckpointOptions checkpoint;
  ResumeOptions resume;
  StopOptions stop;
  double straggler_score = 0.5;  ///< StragglerOptions::score
  GuardOptions guard;            ///< bundle_dir is filled in by the job
  MonitorOptions monitors;
  std::string metrics_dir;  ///< empty: run_dir
  std::string init;         ///< checkpoint whose weights a fresh run starts from; empty: random ones
  std::optional<ShrinkOptions> shrink;  ///< `init` holds a larger model; none: the role's own
  ObjectiveFactory make_objective;      ///< empty: plain pretraining
  std::function<void(const StepMetrics&)> observe_step;  ///< called after each step on every rank
};

struct TrainingResult {
  double first_loss = 0.0;          ///< of the first step of this job
  double last_loss = 0.0;           ///< mean of the last 10 steps (or fewer)
  double expert_use_std = 0.0;      ///< mean of the last 10 steps
  double tokens_per_s = 0.0;        ///< median over steps
  std::int64_t first_step = 0;      ///< steps that were done when this job started
  std::int64_t steps = 0;           ///< steps of this job; with 0 the losses above are NaN
  std::int64_t tokens = 0;          ///< valid labels seen, earlier jobs of the run included
  std::int64_t peak_rss_bytes = 0;  ///< largest rank
  double startup_s = 0.0;           ///< from the start of run_training to the start of the first step
  double checkpoint_s = 0.0;        ///< stood still for saves
  std::vector<infer::DomainLoss> evaluation;  ///< at the end, one per domain; empty without valid_sources
  std::string checkpoint;                     ///< folder of the last one
  std::map<std::string, double> figures;      ///< of the objective: means over this job's steps
  std::string stopped;  ///< on all ranks alike: why the job ended before its work was done; empty: it did not
};

/// What manifests call a file by its content (the tokenizer): 16 hex digits.
std::string file_hash(const std::string& path);

/// Runs the job from its newest checkpoint (or the start) to the last step, or until a stop is asked for
/// (StopRequest): then the step is finished and saved. Collective over `world` and over
/// `role`, which is this rank's part of it. Writes <run_dir>/metrics.jsonl (one object a step and one an
/// evaluation) and checkpoints. Throws CannotCreateError for a folder that cannot be written, DataError for
/// token ids beyond the vocabulary, CheckpointError (see resume()), IoError for a save that failed for good,
/// ConfigError, NumericError.
TrainingResult run_training(const TrainingOptions& options, const parallel::Communicator& world,
                            const parallel::Communicator& role);

}  // namespace athanor::train
