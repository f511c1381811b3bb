#include "optim/detail/flat_group.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "base/error.hpp"
#include "kernels/adamw.hpp"
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

at::ScalarType accumulation_of(const parallel::Parameter& parameter) {
  return parallel::accumulation_type(parameter.value.scalar_type());
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

// One pass over a contiguous range; with `master` as the parameters themselves when they need no copy.
template <typename A, typename C>
void update_range(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                  const at::Tensor& gradient, const at::Tensor& copy, const kernels::AdamwScalars& scalars) {
  kernels::cpu::adamw_update(master.mutable_data_ptr<A>(), exp_avg.mutable_data_ptr<A>(),
                             exp_avg_sq.mutable_data_ptr<A>(), gradient.const_data_ptr<A>(), gradient.numel(),
                             scalars, copy.defined() ? copy.mutable_data_ptr<C>() : nullptr);
}

}  // namespace

FlatGroup::FlatGroup(std::vector<std::shared_ptr<parallel::Parameter>> parameters,
                     const parallel::Communicator& comm, const OptimOptions& options,
                     const GradientWire& wire)
    : comm_(&comm),
      parameters_(std::move(parameters)),
      zero_(options.zero == 1),
      layout_(numels(parameters_), comm.size(), options.bucket_elements),
      reducer_(layout_, comm, accumulation_of(*parameters_.front()), purpose_of(*parameters_.front()), wire) {
  const at::NoGradGuard no_grad;
  const at::ScalarType compute = parameters_.front()->value.scalar_type();
  values_ = at::zeros({layout_.total()}, compute);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    parallel::Parameter& parameter = *parameters_[i];
    ATHANOR_CHECK(parameter.value.scalar_type() == compute, "parameter {} has another type than {}",
                  parameter.name, parameters_.front()->name);
    const at::Tensor home =
        values_.narrow(0, layout_.offset(i), parameter.value.numel()).view(parameter.value.sizes());
    home.copy_(parameter.value);
    parameter.value.set_data(home);  // the same leaf for whoever holds it
    parameter.grad.attach(
        reducer_.flat().narrow(0, layout_.offset(i), parameter.value.numel()).view(parameter.value.sizes()));
  }
  held_ = is_sharded() ? layout_.owned_by(comm.rank()) : std::vector<FlatLayout::Range>{layout_.whole()};
  const std::int64_t held_total = is_sharded() ? layout_.shard_total() : layout_.total();
  const at::ScalarType accumulation = reducer_.flat().scalar_type();
  exp_avg_ = at::zeros({held_total}, accumulation);
  exp_avg_sq_ = at::zeros({held_total}, accumulation);
  if (accumulation != compute) {
    master_ = at::empty({held_total}, accumulation);
    for (const FlatLayout::Range& range : held_) {
      master_of(range).copy_(values_.narrow(0, range.first, range.count));
    }
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

void FlatGroup::gather_gradients() {
  if (!zero_) {
    reducer_.all_gather();
  }
}

void FlatGroup::update(const AdamwStep& step) {
  const kernels::AdamwScalars scalars = scalars_of(step, parameters_.front()->decay);
  const at::Tensor& gradients = is_sharded() ? reducer_.shard() : reducer_.flat();
  const at::ScalarType compute = values_.scalar_type();
  for (const FlatLayout::Range& range : held_) {
    const auto part = [&](const at::Tensor& held) { return held.narrow(0, range.shard_first, range.count); };
    const at::Tensor copy = master_.defined() ? values_.narrow(0, range.first, range.count) : at::Tensor();
    const auto run = compute == at::kDouble     ? update_range<double, double>
                     : compute == at::kFloat    ? update_range<float, float>
                     : compute == at::kBFloat16 ? update_range<float, at::BFloat16>
                                                : update_range<float, at::Half>;
    run(master_of(range), part(exp_avg_), part(exp_avg_sq_), part(gradients), copy, scalars);
  }
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
                                                          const OptimOptions& options,
                                                          const GradientWire& wire) {
  std::vector<std::unique_ptr<FlatGroup>> flat_groups;
  for (const parallel::ReductionGroup& group : groups) {
    for (const auto kind : {parallel::ParameterKind::dense, parallel::ParameterKind::expert}) {
      for (const auto decay : {parallel::DecayGroup::decay, parallel::DecayGroup::no_decay}) {
        std::vector<std::shared_ptr<parallel::Parameter>> members;
        for (const auto& parameter : group.parameters) {
          if (parameter->kind == kind && parameter->decay == decay) {
            members.push_back(parameter);
          }
        }
        if (!members.empty()) {
          flat_groups.push_back(std::make_unique<FlatGroup>(std::move(members), group.comm, options, wire));
        }
      }
    }
  }
  return flat_groups;
}

}  // namespace athanor::optim::detail
