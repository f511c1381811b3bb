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
#include "train/schedule.hpp"
#include "train/step_sums.hpp"

namespace athanor::train {

struct Trainer::Parts {
  TrainerOptions options;
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters;
  model::Transformer model;
  optim::ShardedOptimizer optimizer;
  optim::LossScaler scaler;
  TrainState state;
  RoutingForcer forcer;

  Parts(const TrainerOptions& trainer_options, const parallel::Communicator& role)
      : options(trainer_options),
        grid(parallel::ParallelDims::from_role_size(role.size(), options.role.tp, options.role.ep), role),
        parameters({options.seed, parallel::scalar_type(options.role.compute), true}),
        model(options.role.model, parameters, grid),
        optimizer(options.role.optim, options.role.grad_comm, parameters, grid),
        scaler(options.role.compute == base::ComputeType::fp16) {
    state.balance = model.make_balance_state();
  }
};

namespace {

// The largest power of two not above 1/labels: the part of 1/N that is exact in binary.
double inverse_power_of_two(double labels) { return std::ldexp(1.0, -static_cast<int>(std::ceil(std::log2(labels)))); }

std::int64_t count_valid_labels(const std::vector<data::Batch>& micro_batches) {
  std::int64_t labels = 0;
  for (const data::Batch& batch : micro_batches) {
    labels += batch.valid_labels();
  }
  return labels;
}

}  // namespace

Trainer::Trainer(const TrainerOptions& options, const parallel::Communicator& role)
    : parts_(std::make_unique<Parts>(options, role)) {}

Trainer::~Trainer() = default;

const TrainerOptions& Trainer::options() const { return parts_->options; }
const model::Transformer& Trainer::model() const { return parts_->model; }
const parallel::ParameterMap& Trainer::parameters() const { return parts_->parameters; }
const parallel::ProcessGrid& Trainer::grid() const { return parts_->grid; }
optim::ShardedOptimizer& Trainer::optimizer() { return parts_->optimizer; }
TrainState& Trainer::state() { return parts_->state; }
void Trainer::force_routing(RoutingForcer forcer) { parts_->forcer = std::move(forcer); }

data::ReplicaSlice Trainer::replica() const {
  return {parts_->grid.coordinates().dp_rank, parts_->grid.dims().dp};
}

StepMetrics Trainer::step(const std::vector<data::Batch>& micro_batches) {
  Parts& parts = *parts_;
  base::Stopwatch total;
  StepMetrics metrics;
  parts.grid.role().traffic().reset();

  // The labels of a replica are the same on all its tp ranks: count them once.
  const bool counts_replica = parts.grid.coordinates().tp_rank == 0;
  const std::int64_t own_labels = counts_replica ? count_valid_labels(micro_batches) : 0;
  const std::int64_t labels = parallel::all_reduce_sum(own_labels, parts.grid.role());
  if (labels == 0) {
    throw base::DataError("step {} has no valid label in its whole batch (nothing to train on) check the data",
                          parts.state.step + 1);
  }

  std::vector<moe::LayerStatistics> statistics = parts.model.make_statistics();
  model::ForwardContext context;
  context.valid_labels = static_cast<double>(labels);
  context.routed_tokens = static_cast<double>(parts.options.global_batch * parts.options.seq);
  context.num_sequences = static_cast<double>(parts.options.global_batch);
  context.seed = parts.options.seed;
  context.balance = &parts.state.balance;
  context.statistics = &statistics;

  parts.optimizer.begin_step();
  const double seed = parts.scaler.scale() * inverse_power_of_two(static_cast<double>(labels));
  std::vector<MicroBatch> micros(micro_batches.size());
  double ce_sum = 0.0;
  for (const Action& action : accumulation_schedule(static_cast<std::int64_t>(micros.size()))) {
    const auto index = static_cast<std::size_t>(action.micro_batch);
    MicroBatch& micro = micros[index];
    if (action.kind == ActionKind::forward) {
      base::ScopedTimer timer(metrics.times.forward_s);
      micro.batch = infer::make_token_batch(micro_batches[index], parts.grid.dims().tp);
      if (parts.forcer) {
        micro.forced_ids = parts.forcer(micro.batch);
      }
      ce_sum += forward_micro_batch(parts.model, context, micro);
    } else {
      base::ScopedTimer timer(metrics.times.backward_s);
      backward_micro_batch(micro, seed);
    }
  }

  const double lr =
      optim::learning_rate(parts.options.role.optim, parts.optimizer.updates(), parts.options.total_steps);
  const optim::UpdateResult update =
      parts.optimizer.step({lr, 1.0 / (static_cast<double>(labels) * seed)});
  metrics.times.reduce_s = parts.optimizer.last_times().reduce_s;
  metrics.times.optimizer_s = parts.optimizer.last_times().update_s;
  metrics.times.gather_s = parts.optimizer.last_times().gather_s;

  const parallel::TrafficCounters& traffic = parts.grid.role().traffic();
  metrics.times.exchange_s =
      traffic.seconds(parallel::Traffic::dispatch) + traffic.seconds(parallel::Traffic::combine);

  StepSums sums(parts.model, statistics, counts_replica ? ce_sum : 0.0);
  sums.reduce(parts.grid.role());
  parts.scaler.update(!update.skipped);
  parts.state.step += 1;
  parts.state.tokens += labels;
  if (!update.skipped) {
    sums.advance(parts.state.balance, parts.model, parts.options.role.model.moe, context.routed_tokens);
  }

  metrics.role = parts.options.role.name;
  metrics.step = parts.state.step;
  metrics.tokens = parts.state.tokens;
  metrics.lr = lr;
  metrics.grad_norm = update.grad_norm;
  metrics.skipped = update.skipped;
  metrics.loss_scale = parts.scaler.scale();
  metrics.total_skips = parts.scaler.state().total_skips;
  sums.report(metrics, parts.options, static_cast<double>(labels));
  metrics.times.total_s = total.seconds();
  metrics.tokens_per_s = static_cast<double>(labels) / metrics.times.total_s;
  if (parts.scaler.state().consecutive_skips >= parts.options.role.optim.max_skips) {
    throw base::NumericError(
        "{} steps in a row had non-finite gradients, the last was step {} (optim.max_skips={}) lower optim.lr or "
        "look at the data; the parameters are those before the first of them",
        parts.scaler.state().consecutive_skips, parts.state.step, parts.options.role.optim.max_skips);
  }
  return metrics;
}

}  // namespace athanor::train
