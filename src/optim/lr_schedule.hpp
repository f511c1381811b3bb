// Learning rate as a function of the step.
#pragma once

#include <cstdint>

#include "optim/optim_options.hpp"

namespace athanor::optim {

/// Learning rate of update `step` (0 is the first) of `total_steps`.
///
/// Warm-up: lr * (step + 1) / warmup_steps for step < warmup_steps, so update 0 already learns and update
/// warmup_steps - 1 runs at lr. Afterwards, with p = (step - first) / (total_steps - first) the progress of
/// the decay:
///   constant  lr
///   linear    lr + p (min_lr - lr), first = warmup_steps
///   cosine    min_lr + (lr - min_lr) (1 + cos(pi p)) / 2, first = warmup_steps
///   wsd       lr, then linear with first = total_steps - ceil(total_steps / 5), not before the end of
///   warm-up
/// p would be 1 at step total_steps: the last update still runs above min_lr (it would be wasted at min_lr =
/// 0). From total_steps on the decaying schedules stay at min_lr.
double learning_rate(const OptimOptions& options, std::int64_t step, std::int64_t total_steps);

}  // namespace athanor::optim
