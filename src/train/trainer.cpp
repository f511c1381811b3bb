#include "train/trainer.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <optional>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/memory.hpp"
#include "base/stopwatch.hpp"
#include "infer/token_batch.hpp"
#include "moe/moe_layer.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/dtype.hpp"
#include "train/micro_batch.hpp"
#include "train/objective.hpp"
#include "train/schedule.hpp"
#include "train/step_guard.hpp"
#include "train/step_sums.hpp"

namespace athanor::train {

namespace {

// A frozen role's parameters have no gradients and no optimizer state.
const parallel::ParameterMap& freeze_if(bool frozen, const parallel::ParameterMap& parameters) {
  if (frozen) {
    for (const auto& parameter : parameters.all()) {
      parameter->trainable = false;
      parameter->value.set_requires_grad(false);
    }
  }
  return parameters;
}

at::Device tensor_device(const device::Device& device) {
  return device.is_cuda() ? at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device.index())) : at::kCPU;
}

}  // namespace

struct Trainer::Parts {
  TrainerOptions options;
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters;
  model::Transformer model;
  std::unique_ptr<Objective> objective;
  optim::ShardedOptimizer optimizer;
  optim::LossScaler scaler;
  StepGuard guard;
  TrainState state;
  RoutingForcer forcer;

  Parts(const TrainerOptions& trainer_options, const parallel::Communicator& role,
        const ObjectiveFactory& make_objective)
      : options(trainer_options),
        grid(parallel::ParallelDims::from_role_size(role.size(), options.role.tp, options.role.ep), role),
        parameters(
            {options.seed, parallel::scalar_type(options.role.compute), true, tensor_device(options.device)}),
        model(options.role.model, parameters, grid),
        objective(make_objective ? make_objective(model, parameters, grid)
                                 : std::make_unique<LanguageModelObjective>()),
        optimizer(options.role.optim, options.role.grad_wire, freeze_if(options.role.frozen, parameters),
                  grid),
        scaler(options.role.compute == base::ComputeType::fp16),
        guard(options.guard, parameters, optimizer, grid, options.role.optim.max_skips) {
    state.balance = model.make_balance_state();
    state.loss_scale = scaler.state();
  }
};

namespace {

// The largest power of two not above 1/labels: the part of 1/N that is exact in binary.
double inverse_power_of_two(double labels) {
  return std::ldexp(1.0, -static_cast<int>(std::ceil(std::log2(labels))));
}

std::int64_t count_valid_labels(const std::vector<data::Batch>& micro_batches) {
  std::int64_t labels = 0;
  for (const data::Batch& batch : micro_batches) {
    labels += batch.valid_labels();
  }
  return labels;
}

// Tests: damage that hardware does now and then (base/fault_point.hpp).
void damage_weight(const parallel::ParameterMap& parameters, int rank) {
  if (const std::optional<double> value = base::fault_value("train.weight", rank)) {
    const at::NoGradGuard no_grad;
    parameters.all().front()->value.detach().flatten().narrow(0, 0, 1).fill_(*value);
  }
}

}  // namespace

Trainer::Trainer(const TrainerOptions& options, const parallel::Communicator& role,
                 const ObjectiveFactory& make_objective)
    : parts_(std::make_unique<Parts>(options, role, make_objective)) {}

Trainer::~Trainer() = default;

const TrainerOptions& Trainer::options() const {
  return parts_->options;
}
const model::Transformer& Trainer::model() const {
  return parts_->model;
}
const parallel::ParameterMap& Trainer::parameters() const {
  return parts_->parameters;
}
const parallel::ProcessGrid& Trainer::grid() const {
  return parts_->grid;
}
Objective& Trainer::objective() {
  return *parts_->objective;
}
optim::ShardedOptimizer& Trainer::optimizer() {
  return parts_->optimizer;
}
TrainState& Trainer::state() {
  return parts_->state;
}
void Trainer::restore(TrainState state) {
  parts_->state = std::move(state);
  parts_->objective->restore(parts_->state.objective);
  parts_->optimizer.set_updates(parts_->state.updates);
  parts_->scaler.set_state(parts_->state.loss_scale);
  parts_->optimizer.publish_master();
  parts_->guard.forget();
}
void Trainer::force_routing(RoutingForcer forcer) {
  parts_->forcer = std::move(forcer);
}

data::ReplicaSlice Trainer::replica() const {
  return {parts_->grid.coordinates().dp_rank, parts_->grid.dims().dp};
}

// Forward and, in training, backward of all micro-batches by the schedule; returns this replica's sum of CE.
double Trainer::run_schedule(const std::vector<data::Batch>& micro_batches,
                             const model::ForwardContext& context, double seed, StepTimes& times) {
  std::vector<MicroBatch> micros(micro_batches.size());
  const double damage = base::fault_value("train.gradient", parts_->grid.role().rank()).value_or(1.0);
  double ce_sum = 0.0;
  std::size_t backwards_left = micros.size();
  for (const Action& action : accumulation_schedule(static_cast<std::int64_t>(micros.size()))) {
    const auto index = static_cast<std::size_t>(action.micro_batch);
    MicroBatch& micro = micros[index];
    if (action.kind == ActionKind::backward) {
      if (!context.training) {
        micro = {};
        continue;
      }
      const base::ScopedTimer timer(times.backward_s);
      const base::ScopedSpan span(base::SpanKind::phase, "backward");
      if (--backwards_left == 0) {
        parts_->optimizer.begin_reduction(1.0 / (context.valid_labels * seed));
      }
      backward_micro_batch(micro, seed * damage);
      continue;
    }
    const base::ScopedTimer timer(times.forward_s);
    const base::ScopedSpan span(base::SpanKind::phase, "forward");
    micro.batch = infer::make_token_batch(micro_batches[index], parts_->grid.dims().tp);
    if (parts_->forcer) {
      micro.forced_ids = parts_->forcer(micro.batch);
    }
    model::ForwardContext micro_context = context;
    micro_context.forced_ids = micro.forced_ids.empty() ? nullptr : &micro.forced_ids;
    ce_sum += parts_->objective->forward(parts_->model, micro_context, action.micro_batch, micro);
  }
  return ce_sum;
}

// One reduction for what all ranks must know of a step. A replica's labels are the same on all its tp ranks
// and count once.
Trainer::StepCounts Trainer::count_over_role(const std::vector<data::Batch>& micro_batches,
                                             const StepRequests& requests) const {
  at::Tensor counts = at::zeros({3}, at::kLong);
  auto* count = counts.mutable_data_ptr<std::int64_t>();
  count[0] = is_first_of_replica() ? count_valid_labels(micro_batches) : 0;
  count[1] = requests.save ? 1 : 0;
  count[2] = requests.stop && requests.stop() ? 1 : 0;
  parallel::all_reduce_(counts, parallel::ReduceOp::sum, parts_->grid.role(), parallel::Traffic::other);
  if (count[0] == 0) {
    throw base::DataError(
        "step {} has no valid label in its whole batch (nothing to train on) check the data",
        parts_->state.step + 1);
  }
  return {count[0], count[1], count[2]};
}

bool Trainer::is_first_of_replica() const {
  return parts_->grid.coordinates().tp_rank == 0;
}

StepMetrics Trainer::step(const std::vector<data::Batch>& micro_batches, const StepRequests& requests) {
  Parts& parts = *parts_;
  const base::ScopedSpan step_span(
      base::Span{.kind = base::SpanKind::step, .name = "step", .number = parts.state.step + 1});
  const base::Stopwatch total;
  StepMetrics metrics;
  const parallel::TrafficCounters& traffic = parts.grid.role().traffic();
  parts.grid.role().traffic().reset();
  const StepCounts counts = [&] {
    const base::ScopedSpan span(base::SpanKind::phase, "open step");
    return count_over_role(micro_batches, requests);
  }();
  const auto labels = static_cast<double>(counts.labels);
  metrics.save_requests = counts.save_requests;
  metrics.stop_requests = counts.stop_requests;

  std::vector<moe::LayerStatistics> statistics = parts.model.make_statistics();
  model::ForwardContext context;
  context.valid_labels = labels;
  context.routed_tokens = static_cast<double>(parts.options.global_batch * parts.options.seq);
  context.num_sequences = static_cast<double>(parts.options.global_batch);
  context.seed = parts.options.seed;
  context.balance = &parts.state.balance;
  context.statistics = &statistics;

  std::optional<base::ScopedSpan> begin_span(std::in_place, base::SpanKind::phase, "begin step");
  parts.objective->begin_step({parts.state.step, parts.optimizer.updates(), labels, counts.save_requests,
                               counts.stop_requests, &micro_batches});
  context.training = !parts.options.role.frozen && parts.objective->trains();
  const at::AutoGradMode grad_mode(context.training);
  parts.optimizer.begin_step();
  begin_span.reset();
  const double seed = parts.scaler.scale() * inverse_power_of_two(labels);
  parts.guard.begin_step(parts.state.guard, parts.objective->stage());
  damage_weight(parts.parameters, parts.grid.role().rank());
  const auto attempt_once = [&] {
    StepAttempt attempt;
    const double ce_sum = run_schedule(micro_batches, context, seed, metrics.times);
    attempt.loss_sum = is_first_of_replica() ? ce_sum : 0.0;
    attempt.loss_sum *= base::fault_value("train.loss", parts.grid.role().rank()).value_or(1.0);
    return attempt;
  };
  StepAttempt attempt = attempt_once();
  const Update update = update_parameters(metrics, labels, seed, context.training, attempt, [&] {
    statistics = parts.model.make_statistics();
    parts.optimizer.begin_step();
    return attempt_once();
  });
  metrics.times.exchange_s =
      traffic.seconds(parallel::Traffic::dispatch) + traffic.seconds(parallel::Traffic::combine);

  const base::ScopedSpan report_span(base::SpanKind::phase, "report");
  StepSums sums(parts.model, statistics, attempt.loss_sum);
  sums.reduce(parts.grid.role(), requests.stop && requests.stop());
  advance_state(update, sums, labels, context.training);
  metrics.grad_norm = update.result.grad_norm;
  metrics.skipped = update.result.skipped;
  sums.report(metrics, parts.options, labels);
  parts.objective->report(metrics, parts.grid.role());
  parts.objective->end_step(update.result.skipped);
  parts.state.objective = parts.objective->state();
  describe_state(metrics);
  metrics.times.total_s = total.seconds();
  metrics.tokens_per_s = labels / metrics.times.total_s;
  if (context.training) {
    parts.guard.finish(parts.state.guard, metrics, parts.scaler.state().consecutive_skips, micro_batches);
  }
  return metrics;
}

Trainer::Update Trainer::update_parameters(StepMetrics& metrics, double labels, double seed, bool trains,
                                           StepAttempt& attempt, const std::function<StepAttempt()>& again) {
  Parts& parts = *parts_;
  Update update;
  if (!trains) {
    parts.objective->accepts_step();
    return update;
  }
  if (!parts.objective->accepts_step()) {
    parts.optimizer.abandon_step(1.0 / (labels * seed));
    update.result.skipped = true;
    return update;
  }
  metrics.lr =
      optim::learning_rate(parts.options.role.optim, parts.optimizer.updates(), parts.options.total_steps) *
      parts.objective->learning_rate_factor();
  const optim::ShardedOptimizer::StepInput input{metrics.lr, 1.0 / (labels * seed)};
  attempt.grad_norm = parts.optimizer.reduce(input.gradient_scale);
  GuardedStep step{parts.state.step + 1, labels, parts.options.role.compute == base::ComputeType::fp16};
  if (parts.objective->can_repeat()) {
    step.again = [&] {
      parts.optimizer.finish(input, attempt.grad_norm, false);
      StepAttempt repeated = again();
      repeated.grad_norm = parts.optimizer.reduce(input.gradient_scale);
      return repeated;
    };
  }
  const bool is_accepted = parts.guard.accepts(parts.state.guard, step, attempt);
  update.result = parts.optimizer.finish(input, attempt.grad_norm, is_accepted);
  update.left_out_by_guard = !is_accepted && std::isfinite(attempt.grad_norm);
  metrics.times.reduce_s = parts.optimizer.last_times().reduce_s;
  metrics.times.optimizer_s = parts.optimizer.last_times().update_s;
  metrics.times.gather_s = parts.optimizer.last_times().gather_s;
  return update;
}

void Trainer::advance_state(const Update& update, const StepSums& sums, double labels, bool trains) {
  Parts& parts = *parts_;
  if (trains && !update.left_out_by_guard) {  // the scale is about overflows only
    parts.scaler.update(!update.result.skipped);
  }
  parts.state.step += 1;
  parts.state.tokens += static_cast<std::int64_t>(labels);
  parts.state.updates = parts.optimizer.updates();
  parts.state.loss_scale = parts.scaler.state();
  if (!update.result.skipped && trains) {
    sums.advance(parts.state.balance, parts.model, parts.options.role.model.moe,
                 parts.options.global_batch * parts.options.seq);
  }
}

void Trainer::describe_state(StepMetrics& metrics) const {
  metrics.role = parts_->options.role.name;
  metrics.step = parts_->state.step;
  metrics.tokens = parts_->state.tokens;
  metrics.loss_scale = parts_->scaler.scale();
  metrics.total_skips = parts_->scaler.state().total_skips;
}

}  // namespace athanor::train
