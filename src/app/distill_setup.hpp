// From the configuration of a job with teacher and students to the options of its distillation.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"
#include "train/signal_plan.hpp"
#include "train/student_objective.hpp"

namespace athanor::app {

/// The signals of the job: the same on every rank; the teacher is the first role. `domains` are those of the
/// training data, in the order of Batch::domains.
std::shared_ptr<train::SignalOptions> make_signal_options(const config::RunConfig& config,
                                                          const parallel::RoleSplit& roles,
                                                          std::vector<std::string> domains);

/// The student that is role `role` of the configuration.
train::StudentOptions make_student_options(const config::RunConfig& config, std::size_t role);

}  // namespace athanor::app
