// What `train` and `distill` share: the run folder, the options of a role's training, its results.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/error.hpp"
#include "checkpoint/run_lock.hpp"
#include "config/run_config.hpp"
#include "train/training.hpp"

namespace athanor::app {

/// Rank 0's part of starting in a run folder: it exists, takes files, is locked against other jobs, has its
/// own copy of configuration and tokenizer, and nothing left of saves that were killed. Throws
/// CannotCreateError.
checkpoint::RunLock prepare_run_folder(const config::RunConfig& config);

/// Token files that are missing or damaged, and models that a role cannot start from, are found before
/// anything is made. Throws as data::Dataset and check_initial_weights.
void check_data_files(const config::RunConfig& config);

/// The options of one role. `config` outlives the result.
train::TrainingOptions make_training_options(const config::RunConfig& config, const config::RoleConfig& role);

nlohmann::json to_json(const train::TrainingResult& result);
std::string to_text(const train::TrainingResult& result);
/// `requeue` for a job that was stopped before its work was done.
base::ExitCode exit_code_of(const train::TrainingResult& result);

}  // namespace athanor::app
