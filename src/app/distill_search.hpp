// The search for the temperature: short trials one after another in one job, and a ranking of them.
#pragma once

#include <functional>

#include "app/commands.hpp"
#include "config/run_config.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "train/training.hpp"

namespace athanor::app {

/// Trains all roles as `trial` says, after `adjust` has changed the options of this rank's role. Collective
/// over the world.
using TrialRunner = std::function<train::TrainingResult(
    const config::RunConfig& trial, const std::function<void(train::TrainingOptions&)>& adjust)>;

/// Refuses with CannotCreateError a run folder that has checkpoints: a search is no part of a run.
void check_search_folder(const config::RunConfig& config);

/// Runs the trials of config::make_trial that have no result yet in <run.dir>/trials/NN/result.json, and
/// writes the ranking of all to <run.dir>/search.json: by each student's loss on data.valid. Nothing else is
/// kept of a trial but its metrics. The run folder is prepared and locked. Collective over `world`. Throws
/// ConfigError when the folder has results of another search, IoError, and what a run throws.
CommandResult search_temperature(const config::RunConfig& config, const parallel::RoleSplit& roles,
                                 const parallel::Communicator& world, const TrialRunner& run_trial);

}  // namespace athanor::app
