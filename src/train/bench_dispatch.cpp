#include "train/bench_dispatch.hpp"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/philox.hpp"
#include "kernels/fp8.hpp"
#include "moe/token_dispatcher.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/dtype.hpp"

namespace athanor::train {
namespace {

using base::WireType;
using parallel::Traffic;

// Popularity of the n-th most popular expert is n to minus this: about what an unbalanced router does.
constexpr double skew = 0.5;

// Which pairs of formats are measured: those that the compute type allows.
std::vector<std::pair<WireType, WireType>> wires_of(base::ComputeType compute) {
  std::vector<std::pair<WireType, WireType>> wires = {{WireType::full, WireType::full}};
  if (compute == base::ComputeType::f32) {
    wires.emplace_back(WireType::bf16, WireType::bf16);
  }
  if (compute != base::ComputeType::f64) {
    const bool has_bf16 = compute != base::ComputeType::fp16;
    wires.emplace_back(WireType::fp8, has_bf16 ? WireType::bf16 : WireType::full);
  }
  return wires;
}

// Even: choices of consecutive tokens go round the experts.
at::Tensor uniform_ids(const BenchDispatchOptions& options, std::int64_t first_token) {
  const at::Tensor token = at::arange(first_token, first_token + options.tokens, at::kLong).unsqueeze(1);
  return (token * options.top_k + at::arange(options.top_k, at::kLong))
      .remainder(options.experts)
      .contiguous();
}

// Uneven: K different experts drawn by popularity (the K largest of log popularity + Gumbel noise), popular
// and unpopular ones in no order.
at::Tensor skewed_ids(const BenchDispatchOptions& options, std::int64_t first_token) {
  const base::PhiloxStream noise(options.seed, base::RandomPurpose::test, "bench dispatch choice");
  const base::PhiloxStream order(options.seed, base::RandomPurpose::test, "bench dispatch experts");
  std::vector<std::int64_t> ranking(static_cast<std::size_t>(options.experts));
  std::iota(ranking.begin(), ranking.end(), 0);
  std::ranges::sort(ranking, {},
                    [&](std::int64_t expert) { return order.uniform(static_cast<std::uint64_t>(expert)); });
  std::vector<double> popularity(ranking.size());
  for (std::size_t n = 0; n < ranking.size(); ++n) {
    popularity[static_cast<std::size_t>(ranking[n])] = -skew * std::log(static_cast<double>(n + 1));
  }
  at::Tensor scores = at::empty({options.tokens, options.experts}, at::kDouble);
  auto* score = scores.mutable_data_ptr<double>();
  for (std::int64_t t = 0; t < options.tokens; ++t) {
    for (std::int64_t e = 0; e < options.experts; ++e) {
      const double uniform =
          noise.uniform(static_cast<std::uint64_t>(first_token + t), static_cast<std::uint64_t>(e));
      *score++ = popularity[static_cast<std::size_t>(e)] - std::log(-std::log(uniform + 0x1.0p-60));
    }
  }
  return std::get<1>(scores.topk(options.top_k, 1)).contiguous();
}

// The choices of one rank's tokens.
struct Choices {
  std::string name;
  moe::Routing routing;
};

Choices make_choices(const std::string& name, const at::Tensor& ids_TK, const BenchDispatchOptions& options) {
  const bool is_f64 = options.compute == base::ComputeType::f64;
  Choices choices{name, {}};
  choices.routing.topk_ids_TK = ids_TK;
  choices.routing.gates_TK =
      at::full(ids_TK.sizes(), 1.0 / static_cast<double>(options.top_k), is_f64 ? at::kDouble : at::kFloat)
          .set_requires_grad(true);
  return choices;
}

// Choices of the role by expert.
at::Tensor count_by_expert(const at::Tensor& ids_TK, const BenchDispatchOptions& options,
                           const parallel::Communicator& role) {
  at::Tensor counts_E = at::bincount(ids_TK.view({-1}), {}, options.experts);
  all_reduce_(counts_E, parallel::ReduceOp::sum, role, Traffic::other);
  return counts_E;
}

RoutingShape shape_of(const Choices& choices, const BenchDispatchOptions& options,
                      const parallel::ProcessGrid& grid) {
  const at::Tensor counts_E =
      count_by_expert(choices.routing.topk_ids_TK, options, grid.role()).to(at::kDouble);
  const at::Tensor share_E = counts_E / counts_E.mean();
  // Ranks with the same experts share their rows evenly here: the blocks of experts say how full ranks are.
  const at::Tensor load = share_E.view({grid.size(parallel::Axis::expert), -1}).mean(1);
  return {choices.name, share_E.std(false).item<double>(), load.max().item<double>()};
}

// One sparse layer's exchanges without its experts: results are the rows themselves.
class Layer {
 public:
  Layer(const BenchDispatchOptions& options, const parallel::ProcessGrid& grid, WireType dispatch,
        WireType combine)
      : dispatcher_(options.experts, grid.comm(parallel::Axis::expert),
                    {dispatch, combine, options.fp8_format}) {
    const at::ScalarType type = parallel::scalar_type(options.compute);
    const at::Tensor numbers =
        at::arange(options.tokens * options.hidden, at::kDouble) * 0.7351 + grid.role().rank();
    x_ = numbers.sin().to(type).view({options.tokens, options.hidden}).set_requires_grad(true);
    dy_ = (numbers.cos() * 1e-3).to(type).view({options.tokens, options.hidden});
  }

  void step(const moe::Routing& routing) const {
    const auto plan = dispatcher_.plan(routing);
    const at::Tensor y = dispatcher_.combine(dispatcher_.dispatch(x_, plan), routing.gates_TK, plan);
    torch::autograd::grad({y}, {x_, routing.gates_TK}, {dy_});
  }

 private:
  moe::TokenDispatcher dispatcher_;
  at::Tensor x_;
  at::Tensor dy_;
};

// Choices of this rank's tokens that other ranks compute.
std::int64_t count_sent(const at::Tensor& ids_TK, const BenchDispatchOptions& options,
                        const parallel::Communicator& ep) {
  const std::int64_t local_experts = options.experts / ep.size();
  const at::Tensor owner = ids_TK.div(local_experts, "floor");
  return owner.ne(ep.rank()).sum().item<std::int64_t>();
}

// What the counters of a case have to show, all ranks together.
void set_formula(DispatchCase& result, const Choices& choices, const BenchDispatchOptions& options,
                 const parallel::ProcessGrid& grid) {
  const parallel::Communicator& ep = grid.comm(parallel::Axis::expert);
  const std::int64_t sent =
      parallel::all_reduce_sum(count_sent(choices.routing.topk_ids_TK, options, ep), grid.role());
  // Each rank tells each other one of its group how many rows come for each of its experts.
  const std::int64_t counts = 8 * (options.experts / ep.size()) * (ep.size() - 1) * grid.role().size();
  const auto rows = [&](WireType wire, base::ComputeType compute) {
    return row_bytes_of_step(sent, options.hidden, wire, compute);
  };
  result.dispatch_formula = counts + rows(result.dispatch, options.compute);
  result.combine_formula = rows(result.combine, options.compute);
  result.dispatch_f32 = counts + rows(WireType::full, base::ComputeType::f32);
  result.combine_f32 = rows(WireType::full, base::ComputeType::f32);
}

double slowest(double seconds, const parallel::Communicator& role) {
  at::Tensor all = at::full({1}, seconds, at::kDouble);
  all_reduce_(all, parallel::ReduceOp::max, role, Traffic::other);
  return all.item<double>();
}

template <typename Action>
double time_of(const Action& action, const parallel::Communicator& role) {
  role.barrier();
  const auto start = std::chrono::steady_clock::now();
  action();
  return slowest(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), role);
}

// One case with what its rounds gave.
class Measurement {
 public:
  Measurement(const BenchDispatchOptions& options, const parallel::ProcessGrid& grid, const Choices& choices,
              WireType dispatch, WireType combine)
      : options_(options), grid_(grid), choices_(choices), layer_(options, grid, dispatch, combine) {
    result_.routing = choices.name;
    result_.dispatch = dispatch;
    result_.combine = combine;
    set_formula(result_, choices, options, grid);
    count_bytes();
    for (std::int64_t i = 1; i < options.warmup_steps; ++i) {
      layer_.step(choices.routing);
    }
  }

  void round() {
    const parallel::Communicator& role = grid_.role();
    const auto steps = static_cast<double>(options_.steps_per_round);
    const double copy_s = time_of([&] { copy(); }, role) / steps;
    const double step_s = time_of([&] { run(); }, role) / steps;
    const double tokens = static_cast<double>(options_.tokens * role.size());
    rates_.push_back(tokens / step_s);
    limits_.push_back(tokens / copy_s);
    ratios_.push_back(copy_s / step_s);
  }

  DispatchCase result() const {
    DispatchCase result = result_;
    result.tokens_per_s = spread_of(rates_);
    result.limit = spread_of(limits_);
    result.ratio = spread_of(ratios_);
    return result;
  }

 private:
  // A step's, by the counters. This rank gets what it is sent: about what it sends itself.
  void count_bytes() {
    const parallel::TrafficCounters& traffic = grid_.role().traffic();
    const std::int64_t dispatched = traffic.bytes(Traffic::dispatch);
    const std::int64_t combined = traffic.bytes(Traffic::combine);
    layer_.step(choices_.routing);
    const std::int64_t own_dispatched = traffic.bytes(Traffic::dispatch) - dispatched;
    const std::int64_t own_combined = traffic.bytes(Traffic::combine) - combined;
    result_.dispatch_bytes = parallel::all_reduce_sum(own_dispatched, grid_.role());
    result_.combine_bytes = parallel::all_reduce_sum(own_combined, grid_.role());
    // Rows that a rank is sent it returns later: over the four exchanges all ranks get what they send.
    from_ = at::ones({own_dispatched + own_combined}, at::kByte);
    to_ = at::ones_like(from_);
  }
  void copy() const {
    for (std::int64_t i = 0; i < options_.steps_per_round && from_.numel() > 0; ++i) {
      std::memcpy(to_.mutable_data_ptr(), from_.const_data_ptr(), static_cast<std::size_t>(from_.numel()));
    }
  }
  void run() const {
    for (std::int64_t i = 0; i < options_.steps_per_round; ++i) {
      layer_.step(choices_.routing);
    }
  }

  const BenchDispatchOptions& options_;
  const parallel::ProcessGrid& grid_;
  const Choices& choices_;
  Layer layer_;
  DispatchCase result_;
  at::Tensor from_;
  at::Tensor to_;
  std::vector<double> rates_, limits_, ratios_;
};

}  // namespace

double DispatchCase::dispatch_share() const {
  return static_cast<double>(dispatch_bytes) / static_cast<double>(dispatch_f32);
}

double DispatchCase::total_share() const {
  return static_cast<double>(dispatch_bytes + combine_bytes) /
         static_cast<double>(dispatch_f32 + combine_f32);
}

std::int64_t row_bytes_of_step(std::int64_t rows, std::int64_t hidden, WireType wire,
                               base::ComputeType compute) {
  const auto element = static_cast<std::int64_t>(at::elementSize(parallel::scalar_type(compute)));
  const std::int64_t row = wire == WireType::full   ? hidden * element
                           : wire == WireType::bf16 ? hidden * 2
                                                    : kernels::fp8_record_bytes(hidden);
  return 2 * rows * row;
}

BenchDispatchResult bench_dispatch(const BenchDispatchOptions& options, const parallel::Communicator& role) {
  const parallel::ProcessGrid grid(options.dims, role);
  const std::int64_t first_token = options.tokens * role.rank();
  const Choices routings[] = {make_choices("uniform", uniform_ids(options, first_token), options),
                              make_choices("skewed", skewed_ids(options, first_token), options)};
  BenchDispatchResult result;
  std::vector<Measurement> measurements;
  for (const Choices& choices : routings) {
    result.routings.push_back(shape_of(choices, options, grid));
    for (const auto& [dispatch, combine] : wires_of(options.compute)) {
      measurements.emplace_back(options, grid, choices, dispatch, combine);
    }
  }
  for (std::int64_t round = 0; round < options.rounds; ++round) {
    for (Measurement& measurement : measurements) {
      measurement.round();
    }
  }
  for (const Measurement& measurement : measurements) {
    result.cases.push_back(measurement.result());
  }
  return result;
}

}  // namespace athanor::train
