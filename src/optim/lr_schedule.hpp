// Learning rate as a function of the step.
#pragma once

#include <cstdint>

#include "optim/optim_options.hpp"

namespace athanor::optim {

/// Learning rate of update `step` (0 is the first) of `total_steps`: linear warm-up from lr/warmup to lr over
/// warmup_steps, then constant | linear to min_lr | half cosine to min_lr | wsd (constant, then linear to min_lr over
/// the last 20 % of the steps).
double learning_rate(const OptimOptions& options, std::int64_t step, std::int64_t total_steps);

}  // namespace athanor::optim
