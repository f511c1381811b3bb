#include "train/step_guard.hpp"

#include <fmt/format.h>

#include <ATen/ATen.h>

#include <bit>
#include <cmath>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "parallel/collectives/collectives.hpp"
#include "train/guard_bundle.hpp"

namespace athanor::train {
namespace {

bool have_equal_bits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

}  // namespace

StepGuard::StepGuard(const GuardOptions& options, const parallel::ParameterMap& parameters,
                     const optim::ShardedOptimizer& optimizer, const parallel::ProcessGrid& grid,
                     std::int64_t max_skips)
    : guard_(options),
      parameters_(&parameters),
      grid_(&grid),
      max_skips_(max_skips),
      replicas_(optimizer.reduction_groups(), grid.role()) {}

void StepGuard::warn(const std::string& text) const {
  if (grid_->role().rank() == 0) {
    base::log_local(base::LogLevel::warning, text);
  }
}

bool StepGuard::is_replica_check_due(std::int64_t step) const {
  const std::int64_t every = guard_.options().replica_every;
  return every > 0 && step % every == 0;
}

// What this rank brings into the sums of a step.
StepGuard::LocalSums StepGuard::local_sums(const StepAttempt& attempt) const {
  std::vector<std::uint64_t> hashes;
  for (const auto& parameter : parameters_->all()) {
    if (parameter->trainable && parameter->grad.keeps_sum()) {
      const at::Tensor values = parameter->grad.buffer().contiguous();
      hashes.push_back(base::hash_bytes(values.const_data_ptr(), values.nbytes()));
    }
  }
  return {attempt.loss_sum, base::hash_bytes(hashes.data(), hashes.size() * sizeof(std::uint64_t))};
}

// Where an error travels with tokens to other ranks' experts, theirs differ too.
std::string StepGuard::name_ranks(const LocalSums& first, const LocalSums& second) const {
  const bool differs =
      !have_equal_bits(first.loss_sum, second.loss_sum) || first.gradients != second.gradients;
  const std::vector<std::string> all = parallel::all_gather_strings(differs ? "1" : "", grid_->role());
  std::vector<std::size_t> ranks;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (!all[rank].empty()) {
      ranks.push_back(rank);
    }
  }
  return ranks.empty() ? "no rank's own sums differ: the reduction"
                       : fmt::format("rank {}", fmt::join(ranks, ", rank "));
}

// Whether the step can go on with its gradients, made again if parameters had to be restored.
bool StepGuard::check_replicas(GuardState& state, const GuardedStep& step, StepAttempt& attempt) {
  if (remembered_after_ != step.number - 1) {  // there may have been updates since
    replicas_.forget();
  }
  const ReplicaCheck::Result result = replicas_.check();
  if (result.text.empty()) {
    return true;
  }
  if (result.unrepaired > 0) {
    throw base::NumericError(
        "step {}: parameters have changed without an update ({}) and no whole replica is left to restore "
        "them "
        "from: test the memory of that node, then give the same command again to go on from the last "
        "checkpoint",
        step.number, result.text);
  }
  state.repairs += result.repaired;
  event_ = fmt::format("repaired {}", result.text);
  warn(
      fmt::format("step {}: parameters had changed without an update ({}); restored from another replica, "
                  "the step is {}: test the memory of that node",
                  step.number, result.text, step.again ? "made again" : "skipped"));
  if (step.again) {
    attempt = step.again();
  }
  return static_cast<bool>(step.again);
}

// The second run's verdict; a step with equal bits stands out for its data or the state it met.
Trip StepGuard::judge_again(GuardState& state, const GuardedStep& step, const Trip& first,
                            StepAttempt& attempt) {
  const double loss = loss_;
  const double norm = attempt.grad_norm;
  const LocalSums before = local_sums(attempt);
  attempt = step.again();
  loss_ = parallel::all_reduce_sum(attempt.loss_sum, grid_->role()) / step.labels;
  if (have_equal_bits(loss, loss_) && have_equal_bits(norm, attempt.grad_norm)) {
    return first;
  }
  ++state.transients;
  const std::string ranks = name_ranks(before, local_sums(attempt));
  event_ =
      fmt::format("transient: {}; {}", first.describe(static_cast<std::int64_t>(state.losses.size())), ranks);
  warn(
      fmt::format("step {}: {}, and other values when it was run again from the same state (loss {:.9g} and "
                  "{:.9g}, gradient norm {:.9g} and {:.9g}): a passing fault of the hardware; {} differs",
                  step.number, first.describe(static_cast<std::int64_t>(state.losses.size())), loss, loss_,
                  norm, attempt.grad_norm, ranks));
  return guard_.judge(state, loss_, attempt.grad_norm);
}

void StepGuard::begin_step(GuardState& state, const std::string& stage) {
  guard_.enter(state, stage);
  trip_ = {};
  event_.clear();
  is_judged_ = false;
}

bool StepGuard::accepts(GuardState& state, const GuardedStep& step, StepAttempt& attempt) {
  if (is_replica_check_due(step.number) && !check_replicas(state, step, attempt)) {
    return false;
  }
  if (guard_.options().acts()) {
    loss_ = parallel::all_reduce_sum(attempt.loss_sum, grid_->role()) / step.labels;
    is_judged_ = true;
    trip_ = guard_.judge(state, loss_, attempt.grad_norm);
    if (trip_.is_nonfinite() && step.has_loss_scaling) {
      trip_ = {};
    }
    if (trip_ && step.again) {
      trip_ = judge_again(state, step, trip_, attempt);
    }
  }
  loss_sum_ = attempt.loss_sum;
  return !trip_ && std::isfinite(attempt.grad_norm);
}

void StepGuard::finish(GuardState& state, StepMetrics& metrics, std::int64_t consecutive_skips,
                       const std::vector<data::Batch>& micro_batches) {
  const GuardOptions& options = guard_.options();
  const auto in_window = static_cast<std::int64_t>(state.losses.size());
  if (!is_judged_ && options.action == GuardAction::warn && !metrics.skipped) {
    trip_ = guard_.judge(state, metrics.loss, metrics.grad_norm);
  }
  if (trip_) {
    guard_.note_trip(state, metrics.step);
    event_ += fmt::format("{}{}: {}", event_.empty() ? "" : "; ", options.acts() ? "skipped" : "warned",
                          trip_.describe(in_window));
    warn(fmt::format("step {}: {}; {} ({} in a row, {} so far)", metrics.step, trip_.describe(in_window),
                     options.acts() ? "its update is left out (guard.action)" : "guard.action=warn",
                     state.bad_steps, state.trips));
    if (!options.acts()) {  // the window follows a lasting change
      guard_.take_values(state, metrics.loss, metrics.grad_norm);
    }
  } else if (!metrics.skipped) {
    guard_.note_ordinary(state, metrics.loss, metrics.grad_norm);
  }
  metrics.guard = event_;
  metrics.guard_trips = state.trips;
  if (is_replica_check_due(metrics.step + 1)) {
    replicas_.remember();
    remembered_after_ = metrics.step;
  }
  if (trip_ && !trip_.is_nonfinite() && options.acts() && guard_.is_too_much(state)) {
    stop_or_roll_back(
        state, metrics,
        fmt::format("{} steps in a row stood out, the last was step {}: {} "
                    "(guard.max_trips={})",
                    state.bad_steps, metrics.step, trip_.describe(in_window), options.max_trips),
        micro_batches);
  }
  if (consecutive_skips >= max_skips_) {
    stop_or_roll_back(state, metrics,
                      fmt::format("{} steps in a row had non-finite gradients, the last was step {} "
                                  "(optim.max_skips={})",
                                  consecutive_skips, metrics.step, max_skips_),
                      micro_batches);
  }
}

void StepGuard::stop_or_roll_back(const GuardState& state, StepMetrics& metrics, const std::string& reason,
                                  const std::vector<data::Batch>& micro_batches) const {
  const GuardOptions& options = guard_.options();
  const std::string bundle =
      write_bundle({options, state, metrics, reason, loss_sum_, &micro_batches, parameters_, &grid_->role()});
  if (guard_.may_roll_back(state)) {
    metrics.rollback_reason = reason;
    return;
  }
  const std::string rollbacks = options.action == GuardAction::rollback
                                    ? fmt::format(", after {} rollbacks (guard.max_rollbacks={})",
                                                  state.rollbacks, options.max_rollbacks)
                                    : "";
  throw base::NumericError(
      "{}{} lower optim.lr or look at the data{}; the parameters are those before the first of them", reason,
      rollbacks, bundle.empty() ? "" : fmt::format(" ({} says which)", bundle));
}

}  // namespace athanor::train
