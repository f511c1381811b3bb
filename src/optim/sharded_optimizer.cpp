#include "optim/sharded_optimizer.hpp"

#include <cmath>

#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "optim/detail/flat_group.hpp"
#include "optim/grad_norm.hpp"

namespace athanor::optim {

struct ShardedOptimizer::State {
  OptimOptions options;
  const parallel::Communicator* role = nullptr;
  std::vector<parallel::ReductionGroup> reduction_groups;
  std::vector<std::unique_ptr<detail::FlatGroup>> groups;
  std::int64_t updates = 0;
  Times times;

  // Every rank passes its groups in the order of their first parameters, which is the same for all members of
  // a group, so blocking collectives of different groups cannot wait for each other in a circle.
  double reduce_and_norm(double gradient_scale) {
    SquareSum squares;
    for (const auto& group : groups) {
      group->reduce_gradients(gradient_scale);
      group->add_squares(squares);
    }
    squares.all_reduce(*role);
    return std::abs(gradient_scale) * std::sqrt(squares.value());
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
  state_->groups = detail::build_flat_groups(state_->reduction_groups, state_->options, wire);
}

ShardedOptimizer::~ShardedOptimizer() = default;

void ShardedOptimizer::begin_step() {
  for (const auto& group : state_->groups) {
    group->reset_gradients();
  }
}

UpdateResult ShardedOptimizer::step(const StepInput& input) {
  State& state = *state_;
  state.times = {};
  base::Stopwatch watch;
  UpdateResult result;
  result.grad_norm = state.reduce_and_norm(input.gradient_scale);
  // The norm is a sum over the whole role, so all ranks decide alike.
  result.skipped = !std::isfinite(result.grad_norm);
  for (const auto& group : state.groups) {
    group->finish_reduction(result.skipped, input.gradient_scale);
  }
  if (result.skipped) {
    state.times.reduce_s = watch.seconds();
    return result;
  }
  for (const auto& group : state.groups) {
    group->gather_gradients();
  }
  state.times.reduce_s = watch.restart();

  ++state.updates;
  const double clipping = clip_coefficient(result.grad_norm, state.options.clip);
  for (const auto& group : state.groups) {
    group->update({state.options, input.lr, input.gradient_scale * clipping, state.updates});
  }
  state.times.update_s = watch.restart();
  for (const auto& group : state.groups) {
    group->gather_parameters();
  }
  state.times.gather_s = watch.seconds();
  return result;
}

std::int64_t ShardedOptimizer::updates() const {
  return state_->updates;
}

void ShardedOptimizer::set_updates(std::int64_t updates) {
  ATHANOR_CHECK(updates >= 0, "{} updates", updates);
  state_->updates = updates;
}

std::vector<OwnedState> ShardedOptimizer::owned_state() {
  std::vector<OwnedState> states;
  for (const auto& group : state_->groups) {
    group->append_owned_state(states);
  }
  return states;
}

std::vector<OwnedState> ShardedOptimizer::written_state() {
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
  for (const auto& group : state_->groups) {
    group->write_parameters_from_master();
    group->gather_parameters();
  }
}

const ShardedOptimizer::Times& ShardedOptimizer::last_times() const {
  return state_->times;
}

}  // namespace athanor::optim
