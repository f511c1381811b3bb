// A training job while it runs: what its setup (training_setup.cpp), its loop and its closing share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/stopwatch.hpp"
#include "checkpoint/manifest.hpp"
#include "data/dataset.hpp"
#include "data/sampler.hpp"
#include "infer/evaluator.hpp"
#include "parallel/communicator.hpp"
#include "train/job_checkpoints.hpp"
#include "train/metrics_sink.hpp"
#include "train/monitors.hpp"
#include "train/state_dict.hpp"
#include "train/stop_request.hpp"
#include "train/straggler.hpp"
#include "train/student_weights.hpp"
#include "train/trainer.hpp"
#include "train/training.hpp"

namespace athanor::train {

class TrainingRun {
 public:
  /// Opens the data, builds the trainer and loads what it starts from. `options` and `stop` outlive it.
  /// Collective over `world` and over `role`; throws as run_training().
  TrainingRun(const TrainingOptions& options, const parallel::Communicator& world,
              const parallel::Communicator& role, StopRequest& stop);

  /// From the first step to the last one, or to a stop. Collective over both.
  TrainingResult run();

 private:
  void load_initial_weights(const parallel::Communicator& role);
  checkpoint::Manifest describe_run(const parallel::Communicator& world) const;
  // `after_step`: lines of later steps are cut.
  void open_metrics(const parallel::Communicator& world, const parallel::Communicator& role,
                    std::int64_t after_step);
  void open_checkpoints(const parallel::Communicator& world, checkpoint::Manifest head);
  void log_start() const;

  const parallel::Communicator& role() const { return trainer_->grid().role(); }
  void open_own_checkpoints();
  // Those of the whole job, or of a role that lost the others.
  JobCheckpoints& saves() { return own_checkpoints_ ? *own_checkpoints_ : *checkpoints_; }
  std::string describe_last_checkpoint() const;
  [[noreturn]] void end_alone(bool stops);
  StepMetrics step_or_stop(const std::vector<data::Batch>& batches);
  bool run_steps(std::vector<StepMetrics>& history, TrainingResult& result);
  bool is_saved_after(std::int64_t step, std::int64_t save_requests, bool ends);
  void roll_back(const data::BatchSampler& sampler, std::vector<StepMetrics>& history,
                 TrainingResult& result);
  bool is_stop_agreed(const StepMetrics& metrics) const;
  bool is_evaluated_after(std::int64_t step) const;
  bool make_up_evaluation();
  void note_monitors(StepMetrics& metrics);
  SlowestRank look_for_stragglers(std::int64_t step);
  StepMetrics train_step(data::Prefetcher& prefetcher, double stall_s);
  std::int64_t micro_batch() const;
  bool evaluate(std::int64_t step, std::vector<infer::DomainLoss>* losses = nullptr);

  const TrainingOptions& options_;
  const parallel::Communicator& world_;
  StopRequest& stop_;
  base::Stopwatch startup_;
  JobTrace trace_;
  data::Dataset train_set_;
  std::optional<data::Dataset> valid_set_;
  std::optional<Trainer> trainer_;
  std::optional<Resumed> resumed_;
  std::optional<StagedState> staged_;
  std::int64_t first_step_ = 0;  // done before this job
  std::optional<StragglerWatch> stragglers_;
  std::optional<MetricsSink> sink_;
  std::optional<JobCheckpoints::Job> job_;  // what the saves of this job say of it
  std::optional<JobCheckpoints> checkpoints_;
  std::optional<JobCheckpoints> own_checkpoints_;  // of a role that lost the others
  infer::EvaluatorOptions evaluation_options_;
  Monitors monitors_;
  bool is_save_put_off_ = false;  // one was due too soon after a trip of the guard
  std::string rollback_note_;     // for the metrics of the next step
};

}  // namespace athanor::train
