// What a job says of itself at its end.
#pragma once

#include <string>
#include <vector>

#include "train/step_metrics.hpp"
#include "train/training.hpp"

namespace athanor::train {

/// Fills in what follows from the steps of this job: losses, rates, figures; the losses are NaN without any.
void summarise(const std::vector<StepMetrics>& history, TrainingResult& result);

/// The last line of a job that stops early.
std::string describe_stop(const TrainingResult& result);

}  // namespace athanor::train
