#include "optim/sharded_optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "optim/detail/flat_group.hpp"
#include "optim/detail/overlap.hpp"
#include "optim/grad_norm.hpp"

namespace athanor::optim {

struct ShardedOptimizer::State {
  OptimOptions options;
  const parallel::Communicator* role = nullptr;
  std::vector<parallel::ReductionGroup> reduction_groups;
  std::vector<parallel::Communicator>
      lanes;  // one a reduction group; null: nothing goes on in the background
  std::vector<std::unique_ptr<detail::FlatGroup>> groups;
  std::vector<detail::BucketOfGroup> gather_order;
  std::unique_ptr<detail::OverlappedReduction> overlap;
  std::int64_t updates = 0;
  Times times;

  // Every rank passes its groups in the order of their first parameters, which is the same for all members of
  // a group, so blocking collectives of different groups cannot wait for each other in a circle.
  double reduce_and_norm(double gradient_scale) {
    SquareSum squares;
    const bool is_overlapped = overlap && overlap->is_under_way();
    if (is_overlapped) {
      ATHANOR_CHECK(overlap->gradient_scale() == gradient_scale,
                    "a reduction began with a scale of {}, not {}", overlap->gradient_scale(),
                    gradient_scale);
      overlap->finish();
    }
    for (const auto& group : groups) {
      if (!is_overlapped) {
        group->reduce_gradients(gradient_scale);
      }
      group->add_squares(squares);
    }
    squares.all_reduce(*role);
    return std::abs(gradient_scale) * std::sqrt(squares.value());
  }

  void gather_parameters() {
    if (!options.overlap_gather) {
      for (const auto& group : groups) {
        group->gather_parameters();
      }
    }
    for (const detail::BucketOfGroup& bucket : gather_order) {
      groups[bucket.group]->start_gather(bucket.bucket);
    }
  }

  void finish_gathers() {
    for (const auto& group : groups) {
      group->finish_gathers();
    }
  }
};

ShardedOptimizer::ShardedOptimizer(const OptimOptions& options, const GradientWire& wire,
                                   const parallel::ParameterMap& parameters,
                                   const parallel::ProcessGrid& grid)
    : state_(std::make_unique<State>()) {
  validate(options);
  const bool is_f64 =
      !parameters.all().empty() && parameters.all().front()->value.scalar_type() == at::kDouble;
  validate(wire, options, is_f64);
  state_->options = options;
  state_->role = &grid.role();
  state_->reduction_groups = parallel::build_reduction_groups(parameters, grid.role());
  for (const parallel::ReductionGroup& group : state_->reduction_groups) {
    const bool has_lane = options.overlap_reduce || options.overlap_gather;
    state_->lanes.push_back(has_lane ? group.comm.duplicate("lane") : parallel::Communicator());
  }
  state_->groups = detail::build_flat_groups(state_->reduction_groups, state_->lanes, state_->options, wire);
  if (options.overlap_reduce) {
    state_->overlap = std::make_unique<detail::OverlappedReduction>(state_->groups, parameters);
  }
  if (options.overlap_gather) {
    state_->gather_order = detail::backward_order(state_->groups, parameters);
    std::reverse(state_->gather_order.begin(), state_->gather_order.end());  // that of forward
  }
}

ShardedOptimizer::~ShardedOptimizer() = default;

void ShardedOptimizer::begin_step() {
  for (const auto& group : state_->groups) {
    group->reset_gradients();
  }
}

void ShardedOptimizer::begin_reduction(double gradient_scale) {
  if (state_->overlap) {
    state_->overlap->begin(gradient_scale);
  }
}

void ShardedOptimizer::abandon_step(double gradient_scale) {
  if (state_->overlap && state_->overlap->is_under_way()) {
    state_->overlap->finish();
    for (const auto& group : state_->groups) {
      group->finish_reduction(true, gradient_scale);
    }
  }
}

UpdateResult ShardedOptimizer::step(const StepInput& input) {
  const double norm = reduce(input.gradient_scale);
  // The norm is a sum over the whole role, so all ranks decide alike.
  return finish(input, norm, std::isfinite(norm));
}

double ShardedOptimizer::reduce(double gradient_scale) {
  const base::ScopedSpan phase(base::SpanKind::phase, "reduce gradients");
  State& state = *state_;
  state.times = {};
  const base::Stopwatch watch;
  const double norm = state.reduce_and_norm(gradient_scale);
  state.times.reduce_s = watch.seconds();
  return norm;
}

UpdateResult ShardedOptimizer::finish(const StepInput& input, double norm, bool accepted) {
  ATHANOR_CHECK(!accepted || std::isfinite(norm), "an update with a gradient norm of {}", norm);
  State& state = *state_;
  base::Stopwatch watch;
  std::optional<base::ScopedSpan> phase(std::in_place, base::SpanKind::phase, "reduce gradients");
  const UpdateResult result{norm, !accepted};
  for (const auto& group : state.groups) {
    group->finish_reduction(result.skipped, input.gradient_scale);
  }
  if (result.skipped) {
    state.times.reduce_s += watch.seconds();
    return result;
  }
  for (const auto& group : state.groups) {
    group->gather_gradients();
  }
  state.finish_gathers();  // of parameters that nobody read
  state.times.reduce_s += watch.restart();
  phase.emplace(base::SpanKind::phase, "update");

  ++state.updates;
  const double clipping = clip_coefficient(result.grad_norm, state.options.clip);
  for (const auto& group : state.groups) {
    group->update({state.options, input.lr, input.gradient_scale * clipping, state.updates});
  }
  state.times.update_s = watch.restart();
  phase.emplace(base::SpanKind::phase, "gather parameters");
  state.gather_parameters();
  state.times.gather_s = watch.seconds();
  return result;
}

const std::vector<parallel::ReductionGroup>& ShardedOptimizer::reduction_groups() const {
  return state_->reduction_groups;
}

std::int64_t ShardedOptimizer::updates() const {
  return state_->updates;
}

void ShardedOptimizer::set_updates(std::int64_t updates) {
  ATHANOR_CHECK(updates >= 0, "{} updates", updates);
  state_->updates = updates;
}

std::vector<OwnedState> ShardedOptimizer::owned_state() {
  state_->finish_gathers();
  std::vector<OwnedState> states;
  for (const auto& group : state_->groups) {
    group->append_owned_state(states);
  }
  return states;
}

std::vector<OwnedState> ShardedOptimizer::written_state() {
  state_->finish_gathers();
  std::vector<OwnedState> states;
  for (const auto& group : state_->groups) {
    group->append_written_state(states);
  }
  return states;
}

std::vector<ResidualState> ShardedOptimizer::residual_state() {
  std::vector<ResidualState> states;
  for (const auto& group : state_->groups) {
    group->append_residuals(states);
  }
  return states;
}

void ShardedOptimizer::publish_master() {
  state_->finish_gathers();
  for (const auto& group : state_->groups) {
    group->write_parameters_from_master();
    group->gather_parameters();
  }
}

const ShardedOptimizer::Times& ShardedOptimizer::last_times() const {
  return state_->times;
}

}  // namespace athanor::optim
