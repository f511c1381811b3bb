#include "optim/detail/flat_group.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <numeric>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "kernels/tensor_kernels.hpp"
#include "optim/detail/stored_gradients.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::optim::detail {
namespace {

std::vector<std::int64_t> numels(const std::vector<std::shared_ptr<parallel::Parameter>>& parameters) {
  std::vector<std::int64_t> result;
  result.reserve(parameters.size());
  for (const auto& parameter : parameters) {
    result.push_back(parameter->value.numel());
  }
  return result;
}

// Buckets of what goes on in the background: small ones, so that the first leave early and little is left at
// the end, but not so small that a large group sends many thousands of messages.
std::int64_t bucket_elements_of(const OptimOptions& options, const std::vector<std::int64_t>& numels) {
  if (!options.overlap_reduce && !options.overlap_gather) {
    return options.bucket_elements;
  }
  constexpr std::int64_t early = 1 << 20;
  constexpr std::int64_t most_buckets = 256;
  const std::int64_t total = std::accumulate(numels.begin(), numels.end(), std::int64_t{0});
  return std::max(std::min(options.bucket_elements, early), total / most_buckets);
}

/// Of gradients and state: the accumulation type, where the parameter is.
at::TensorOptions accumulation_of(const parallel::Parameter& parameter) {
  const at::Tensor& value = parameter.value;
  return at::TensorOptions().dtype(parallel::accumulation_type(value.scalar_type())).device(value.device());
}

parallel::Traffic purpose_of(const parallel::Parameter& parameter) {
  return parameter.kind == parallel::ParameterKind::expert ? parallel::Traffic::grad_expert
                                                           : parallel::Traffic::grad_dense;
}

kernels::AdamwScalars scalars_of(const AdamwStep& step, parallel::DecayGroup decay) {
  const OptimOptions& options = step.options;
  const auto count = static_cast<double>(step.update);
  return {.lr = step.lr,
          .beta1 = options.beta1,
          .beta2 = options.beta2,
          .eps = options.eps,
          .weight_decay = decay == parallel::DecayGroup::decay ? options.weight_decay : 0.0,
          .bias_correction1 = 1.0 - std::pow(options.beta1, count),
          .bias_correction2 = 1.0 - std::pow(options.beta2, count),
          .gradient_scale = step.gradient_scale};
}

}  // namespace

FlatGroup::FlatGroup(std::vector<std::shared_ptr<parallel::Parameter>> parameters,
                     const parallel::Communicator& comm, const parallel::Communicator& lane,
                     const OptimOptions& options, const GradientWire& wire)
    : comm_(&comm),
      lane_(&lane),
      parameters_(std::move(parameters)),
      zero_(options.zero == 1),
      layout_(numels(parameters_), comm.size(), bucket_elements_of(options, numels(parameters_))),
      reducer_(layout_, comm, accumulation_of(*parameters_.front()), purpose_of(*parameters_.front()), wire) {
  const at::NoGradGuard no_grad;
  const at::ScalarType compute = parameters_.front()->value.scalar_type();
  const at::TensorOptions accumulation = accumulation_of(*parameters_.front());
  values_ = at::zeros({layout_.total()}, accumulation.dtype(compute));
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    parallel::Parameter& parameter = *parameters_[i];
    ATHANOR_CHECK(parameter.value.scalar_type() == compute, "parameter {} has another type than {}",
                  parameter.name, parameters_.front()->name);
    const at::Tensor home =
        values_.narrow(0, layout_.offset(i), parameter.value.numel()).view(parameter.value.sizes());
    home.copy_(parameter.value);
    parameter.value.set_data(home);  // the same leaf for whoever holds it
    attach_gradient(i);
  }
  held_ = is_sharded() ? layout_.owned_by(comm.rank()) : std::vector<FlatLayout::Range>{layout_.whole()};
  const std::int64_t held_total = is_sharded() ? layout_.shard_total() : layout_.total();
  exp_avg_ = at::zeros({held_total}, accumulation);
  exp_avg_sq_ = at::zeros({held_total}, accumulation);
  if (accumulation.dtype() != values_.dtype()) {
    master_ = at::empty({held_total}, accumulation);
    for (const FlatLayout::Range& range : held_) {
      master_of(range).copy_(values_.narrow(0, range.first, range.count));
    }
  }
  if (options.overlap_gather && is_sharded() && num_buckets() > 0) {
    gathers_.resize(num_buckets());
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      parameters_[i]->before_read = [this, i] { wait_for_parameter(i); };
    }
  }
}

void FlatGroup::attach_gradient(std::size_t index) {
  parallel::Parameter& parameter = *parameters_[index];
  const std::int64_t first = layout_.offset(index);
  if (!reducer_.stored()) {
    parameter.grad.attach(
        reducer_.flat().narrow(0, first, parameter.value.numel()).view(parameter.value.sizes()));
    return;
  }
  parameter.grad.attach_taker(parameter.value.sizes().vec(), accumulation_of(parameter),
                              [stored = reducer_.stored(), traffic = &comm_->traffic(), first](
                                  const at::Tensor& gradient) { stored->put(first, gradient, *traffic); });
}

FlatGroup::~FlatGroup() {
  if (!gathers_.empty()) {
    for (const auto& parameter : parameters_) {
      parameter->before_read = nullptr;
    }
  }
  // All ranks have started them, so they end; unless something has gone wrong elsewhere.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  try {
    while (num_gathers_ > 0 && std::uncaught_exceptions() == 0 &&
           std::chrono::steady_clock::now() < deadline) {
      for (parallel::PendingExchange& gather : gathers_) {
        num_gathers_ -= gather.is_under_way() && gather.test() ? 1 : 0;
      }
      std::this_thread::yield();
    }
  } catch (const base::Error& error) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("the last gather of parameters is given up ({})", error.what()));
  }
}

at::Tensor FlatGroup::master_of(const FlatLayout::Range& range) const {
  return master_.defined() ? master_.narrow(0, range.shard_first, range.count)
                           : values_.narrow(0, range.first, range.count);
}

void FlatGroup::reset_gradients() {
  for (const auto& parameter : parameters_) {
    parameter->grad.reset();
  }
}

void FlatGroup::reduce_gradients(double gradient_scale) {
  for (const auto& parameter : parameters_) {
    parameter->grad.finish();
  }
  reducer_.reduce_scatter(gradient_scale);
}

StartedBucket FlatGroup::start_reduction(std::size_t bucket, double gradient_scale) {
  for (const std::size_t parameter : parameters_in(bucket)) {
    if (parallel::GradAccumulator& grad = parameters_[parameter]->grad; !grad.is_closed()) {
      grad.close();
    }
  }
  return reducer_.start(bucket, gradient_scale, *lane_);
}

void FlatGroup::finish_gradients() {
  for (const auto& parameter : parameters_) {
    if (!parameter->grad.is_closed()) {
      parameter->grad.finish();
    }
  }
}

std::vector<std::size_t> FlatGroup::parameters_in(std::size_t bucket) const {
  std::vector<std::size_t> result;
  for (const FlatLayout::Piece& piece : layout_.pieces(layout_.buckets()[bucket])) {
    result.push_back(piece.parameter);
  }
  return result;
}

void FlatGroup::gather_gradients() {
  if (!zero_) {
    reducer_.all_gather();
  }
}

void FlatGroup::add_squares(SquareSum& sum) const {
  if (reducer_.shard().defined()) {
    sum.add(reducer_.shard());
    return;
  }
  reducer_.stored()->for_each_piece([&](std::int64_t, const at::Tensor& gradients) { sum.add(gradients); });
}

void FlatGroup::update(const AdamwStep& step) {
  const at::Tensor& gradients = is_sharded() ? reducer_.shard() : reducer_.flat();
  if (!gradients.defined()) {  // in FP8, and all this rank's own
    reducer_.stored()->for_each_piece([&](std::int64_t first, const at::Tensor& piece) {
      update_range(step, {first, piece.numel(), first}, piece);
    });
    return;
  }
  for (const FlatLayout::Range& range : held_) {
    update_range(step, range, gradients.narrow(0, range.shard_first, range.count));
  }
}

void FlatGroup::update_range(const AdamwStep& step, const FlatLayout::Range& range,
                             const at::Tensor& gradients) {
  const kernels::AdamwScalars scalars = scalars_of(step, parameters_.front()->decay);
  const auto part = [&](const at::Tensor& held) { return held.narrow(0, range.shard_first, range.count); };
  const at::Tensor copy = master_.defined() ? values_.narrow(0, range.first, range.count) : at::Tensor();
  kernels::kernels_of(gradients).adamw_update(
      {master_of(range), part(exp_avg_), part(exp_avg_sq_), gradients, copy}, scalars);
}

void FlatGroup::gather_parameters() {
  if (!is_sharded()) {
    return;
  }
  for (const FlatLayout::Range& bucket : layout_.buckets()) {
    // In rows of one block: fewer and larger units for the transport than elements.
    const std::int64_t rows = bucket.count / block_elements;
    const std::int64_t own_rows = rows / comm_->size();
    at::Tensor all = values_.narrow(0, bucket.first, bucket.count).view({rows, block_elements});
    parallel::all_gather_into(all, all.narrow(0, comm_->rank() * own_rows, own_rows), *comm_,
                              parallel::Traffic::param_gather);
  }
}

void FlatGroup::start_gather(std::size_t bucket) {
  if (!is_sharded()) {
    return;
  }
  ATHANOR_CHECK(!gathers_.empty() && !gathers_[bucket].is_under_way(), "bucket {} is being gathered", bucket);
  const FlatLayout::Range& range = layout_.buckets()[bucket];
  const std::int64_t part = range.count / comm_->size();
  std::vector<at::Tensor> parts;
  for (std::int64_t rank = 0; rank < comm_->size(); ++rank) {
    parts.push_back(values_.narrow(0, range.first + rank * part, part));
  }
  const std::vector<at::Tensor> own(parts.size(), parts[static_cast<std::size_t>(comm_->rank())]);
  gathers_[bucket] = parallel::start_exchange(std::move(parts), own, *lane_, parallel::Traffic::param_gather);
  ++num_gathers_;
}

void FlatGroup::wait_for_bucket(std::size_t bucket) {
  if (gathers_[bucket].is_under_way()) {
    gathers_[bucket].wait();
    --num_gathers_;
  }
}

void FlatGroup::wait_for_parameter(std::size_t parameter) {
  const std::int64_t numel = parameters_[parameter]->value.numel();
  if (num_gathers_ == 0 || numel == 0) {
    return;
  }
  const std::int64_t size = layout_.buckets().front().count;  // of all but the last
  const std::int64_t first = layout_.offset(parameter);
  for (std::int64_t bucket = first / size; bucket <= (first + numel - 1) / size; ++bucket) {
    wait_for_bucket(static_cast<std::size_t>(bucket));
  }
}

void FlatGroup::finish_gathers() {
  for (std::size_t bucket = 0; num_gathers_ > 0; ++bucket) {
    wait_for_bucket(bucket);
  }
}

void FlatGroup::write_parameters_from_master() {
  if (!master_.defined()) {
    return;
  }
  const at::NoGradGuard no_grad;
  for (const FlatLayout::Range& range : held_) {
    values_.narrow(0, range.first, range.count).copy_(master_of(range));
  }
}

void FlatGroup::append_state(const std::vector<FlatLayout::Range>& ranges,
                             std::vector<OwnedState>& states) const {
  for (const FlatLayout::Range& range : ranges) {
    // Where every holder keeps everything, a range lies in the state as it does in the flat storage.
    const std::int64_t shift = is_sharded() ? 0 : range.first - range.shard_first;
    const at::Tensor master = master_.defined() ? master_.narrow(0, range.shard_first + shift, range.count)
                                                : values_.narrow(0, range.first, range.count);
    for (const FlatLayout::Piece& piece : layout_.pieces(range)) {
      states.push_back({parameters_[piece.parameter], piece.first, piece.count,
                        master.narrow(0, piece.flat_first - range.first, piece.count),
                        exp_avg_.narrow(0, piece.shard_first + shift, piece.count),
                        exp_avg_sq_.narrow(0, piece.shard_first + shift, piece.count)});
    }
  }
}

void FlatGroup::append_residuals(std::vector<ResidualState>& states) const {
  if (!reducer_.residual().defined()) {
    return;
  }
  for (const FlatLayout::Piece& piece : layout_.pieces(layout_.whole())) {
    states.push_back({parameters_[piece.parameter], comm_->rank(), comm_->size(),
                      reducer_.residual().narrow(0, piece.flat_first, piece.count)});
  }
}

std::vector<std::unique_ptr<FlatGroup>> build_flat_groups(const std::vector<parallel::ReductionGroup>& groups,
                                                          const std::vector<parallel::Communicator>& lanes,
                                                          const OptimOptions& options,
                                                          const GradientWire& wire) {
  std::vector<std::unique_ptr<FlatGroup>> flat_groups;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const parallel::ReductionGroup& group = groups[g];
    for (const auto kind : {parallel::ParameterKind::dense, parallel::ParameterKind::expert}) {
      for (const auto decay : {parallel::DecayGroup::decay, parallel::DecayGroup::no_decay}) {
        std::vector<std::shared_ptr<parallel::Parameter>> members;
        for (const auto& parameter : group.parameters) {
          if (parameter->kind == kind && parameter->decay == decay) {
            members.push_back(parameter);
          }
        }
        if (!members.empty()) {
          flat_groups.push_back(
              std::make_unique<FlatGroup>(std::move(members), group.comm, lanes[g], options, wire));
        }
      }
    }
  }
  return flat_groups;
}

}  // namespace athanor::optim::detail
