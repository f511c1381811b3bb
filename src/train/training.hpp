// The pretraining job: data, training steps, evaluation, metrics, weights at the end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "infer/evaluator.hpp"
#include "parallel/communicator.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

/// The whole job as values; every path is checked before any long work.
struct TrainingOptions {
  std::string run_dir;      ///< created; config.ini, log.txt, metrics.jsonl and the weights go there
  std::string config_text;  ///< resolved configuration, written as config.ini
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
};

struct TrainingResult {
  double first_loss = 0.0;
  double last_loss = 0.0;       ///< mean of the last 10 steps (or fewer)
  double expert_use_std = 0.0;  ///< mean of the last 10 steps
  double tokens_per_s = 0.0;    ///< median over steps
  std::int64_t steps = 0;
  std::int64_t tokens = 0;
  std::int64_t peak_rss_bytes = 0;  ///< largest rank
  double startup_s = 0.0;           ///< from the start of run_training to the start of the first step
  std::vector<infer::DomainLoss> evaluation;  ///< at the end, one per domain; empty without valid_sources
  std::string weights_path;
};

/// Runs the job on all ranks of `role`. Collective. Writes <run_dir>/metrics.jsonl (one object a step and one
/// an evaluation) and, at the end, the weights, readable at any layout (load_weights). Throws
/// CannotCreateError for a folder that cannot be written, DataError for token ids beyond the vocabulary,
/// ConfigError, NumericError.
TrainingResult run_training(const TrainingOptions& options, const parallel::Communicator& role);

}  // namespace athanor::train
