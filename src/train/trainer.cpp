#include "train/trainer.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.hpp"
#include "base/memory.hpp"
#include "base/stopwatch.hpp"
#include "infer/token_batch.hpp"
#include "moe/moe_layer.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/dtype.hpp"
#include "train/micro_batch.hpp"
#include "train/objective.hpp"
#include "train/schedule.hpp"
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

}  // namespace

struct Trainer::Parts {
  TrainerOptions options;
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters;
  model::Transformer model;
  std::unique_ptr<Objective> objective;
  optim::ShardedOptimizer optimizer;
  optim::LossScaler scaler;
  TrainState state;
  RoutingForcer forcer;

  Parts(const TrainerOptions& trainer_options, const parallel::Communicator& role,
        const ObjectiveFactory& make_objective)
      : options(trainer_options),
        grid(parallel::ParallelDims::from_role_size(role.size(), options.role.tp, options.role.ep), role),
        parameters({options.seed, parallel::scalar_type(options.role.compute), true}),
        model(options.role.model, parameters, grid),
        objective(make_objective ? make_objective(model, parameters, grid)
                                 : std::make_unique<LanguageModelObjective>()),
        optimizer(options.role.optim, options.role.grad_wire, freeze_if(options.role.frozen, parameters),
                  grid),
        scaler(options.role.compute == base::ComputeType::fp16) {
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
  double ce_sum = 0.0;
  for (const Action& action : accumulation_schedule(static_cast<std::int64_t>(micros.size()))) {
    const auto index = static_cast<std::size_t>(action.micro_batch);
    MicroBatch& micro = micros[index];
    if (action.kind == ActionKind::backward) {
      if (!context.training) {
        micro = {};
        continue;
      }
      const base::ScopedTimer timer(times.backward_s);
      backward_micro_batch(micro, seed);
      continue;
    }
    const base::ScopedTimer timer(times.forward_s);
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
  const base::Stopwatch total;
  StepMetrics metrics;
  const parallel::TrafficCounters& traffic = parts.grid.role().traffic();
  parts.grid.role().traffic().reset();
  const StepCounts counts = count_over_role(micro_batches, requests);
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

  parts.objective->begin_step({parts.state.step, parts.optimizer.updates(), labels, counts.save_requests,
                               counts.stop_requests, &micro_batches});
  context.training = !parts.options.role.frozen && parts.objective->trains();
  const at::AutoGradMode grad_mode(context.training);
  parts.optimizer.begin_step();
  const double seed = parts.scaler.scale() * inverse_power_of_two(labels);
  const double ce_sum = run_schedule(micro_batches, context, seed, metrics.times);
  const optim::UpdateResult update = update_parameters(metrics, labels, seed, context.training);
  metrics.times.exchange_s =
      traffic.seconds(parallel::Traffic::dispatch) + traffic.seconds(parallel::Traffic::combine);

  StepSums sums(parts.model, statistics, is_first_of_replica() ? ce_sum : 0.0);
  sums.reduce(parts.grid.role(), requests.stop && requests.stop());
  advance_state(update, sums, labels, context.training);
  metrics.grad_norm = update.grad_norm;
  metrics.skipped = update.skipped;
  sums.report(metrics, parts.options, labels);
  parts.objective->report(metrics, parts.grid.role());
  parts.objective->end_step(update.skipped);
  parts.state.objective = parts.objective->state();
  describe_state(metrics);
  metrics.times.total_s = total.seconds();
  metrics.tokens_per_s = labels / metrics.times.total_s;
  stop_after_too_many_skips();
  return metrics;
}

optim::UpdateResult Trainer::update_parameters(StepMetrics& metrics, double labels, double seed,
                                               bool trains) {
  Parts& parts = *parts_;
  optim::UpdateResult update;
  if (!trains) {
    parts.objective->accepts_step();
    return update;
  }
  if (!parts.objective->accepts_step()) {
    update.skipped = true;
    return update;
  }
  metrics.lr =
      optim::learning_rate(parts.options.role.optim, parts.optimizer.updates(), parts.options.total_steps) *
      parts.objective->learning_rate_factor();
  update = parts.optimizer.step({metrics.lr, 1.0 / (labels * seed)});
  metrics.times.reduce_s = parts.optimizer.last_times().reduce_s;
  metrics.times.optimizer_s = parts.optimizer.last_times().update_s;
  metrics.times.gather_s = parts.optimizer.last_times().gather_s;
  return update;
}

void Trainer::advance_state(const optim::UpdateResult& update, const StepSums& sums, double labels,
                            bool trains) {
  Parts& parts = *parts_;
  if (trains) {
    parts.scaler.update(!update.skipped);
  }
  parts.state.step += 1;
  parts.state.tokens += static_cast<std::int64_t>(labels);
  parts.state.updates = parts.optimizer.updates();
  parts.state.loss_scale = parts.scaler.state();
  if (!update.skipped && trains) {
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

void Trainer::stop_after_too_many_skips() const {
  const std::int64_t skips = parts_->scaler.state().consecutive_skips;
  if (skips >= parts_->options.role.optim.max_skips) {
    throw base::NumericError(
        "{} steps in a row had non-finite gradients, the last was step {} (optim.max_skips={}) lower "
        "optim.lr or "
        "look at the data; the parameters are those before the first of them",
        skips, parts_->state.step, parts_->options.role.optim.max_skips);
  }
}

}  // namespace athanor::train
