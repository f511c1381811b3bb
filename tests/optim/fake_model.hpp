// Parameters with every kind of slice that a layout can make, gradients known in closed form for every rank,
// and what one rank that has them all would do.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "optim/plain_adamw.hpp"
#include "optim/sharded_optimizer.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::optim::tests {

using parallel::DecayGroup;
using parallel::ParameterKind;
using parallel::ShardSpec;

/// One logical parameter and the slice of it that a rank holds.
struct FakeParameter {
  std::string name;
  DecayGroup decay = DecayGroup::decay;
  ParameterKind kind = ParameterKind::dense;
  std::function<ShardSpec(int rank)> slice;
};

/// Dimension `dim` of `shape` in `parts` blocks; a rank holds block part_of(rank).
inline std::function<ShardSpec(int)> sliced(std::vector<std::int64_t> shape, std::int64_t dim, int parts,
                                            std::function<int(int)> part_of) {
  return [=](int rank) {
    const parallel::Block block =
        parallel::block_of(shape[static_cast<std::size_t>(dim)], parts, part_of(rank));
    return ShardSpec::slice(shape, dim, block.first, block.count);
  };
}

inline std::function<ShardSpec(int)> replicated(std::vector<std::int64_t> shape) {
  return [=](int) { return ShardSpec::whole(shape); };
}

/// Replicated, tensor-sharded along either dimension, key-value heads on several tp ranks, experts on one and
/// on several holders, and slices that are empty on some ranks. No size is a multiple of a block.
inline std::vector<FakeParameter> fake_parameters(int ranks) {
  const int tp = ranks % 2 == 0 ? 2 : 1;
  const int ep = ranks % 2 == 0 ? 2 : ranks;
  const int kv_parts = ranks == 4 ? 2 : 1;
  const auto in_tp = [=](int rank) { return rank % tp; };
  const auto in_ep = [=](int rank) { return rank % ep; };
  const auto in_kv = [=](int rank) { return rank * kv_parts / ranks; };
  const auto own = [](int rank) { return rank; };
  const auto decay = DecayGroup::decay;
  const auto none = DecayGroup::no_decay;
  const auto dense = ParameterKind::dense;
  const auto expert = ParameterKind::expert;
  return {{"embedding.weight", decay, dense, replicated({50, 7})},
          {"norm.weight", none, dense, replicated({37})},
          {"q.weight", decay, dense, sliced({12, 33}, 0, tp, in_tp)},
          {"kv.weight", decay, dense, sliced({6, 5}, 0, kv_parts, in_kv)},
          {"down.weight", decay, dense, sliced({9, 10}, 1, tp, in_tp)},
          {"experts.up.weight", decay, expert, sliced({6, 4, 13}, 0, ep, in_ep)},
          {"experts.scale", none, expert, sliced({6}, 0, ep, in_ep)},
          {"wide.experts.weight", decay, expert, sliced({6, 5, 3}, 0, ranks, own)},
          {"rows.weight", decay, dense, sliced({3, 200}, 0, ranks, own)},
          {"first.weight", decay, dense,
           [](int rank) {
             return ShardSpec::slice({2, 8}, 0, rank == 0 ? 0 : 2, rank == 0 ? 2 : 0);
           }},
          {"big.weight", decay, dense, replicated({1500, 3})},
          {"one", none, dense, replicated({1})}};
}

/// The part of the model that `rank` of `ranks` holds.
inline parallel::ParameterMap make_map(const std::vector<FakeParameter>& model, int rank,
                                       at::ScalarType type) {
  parallel::ParameterMap map({.seed = 5, .dtype = type});
  for (const FakeParameter& parameter : model) {
    map.add({.name = parameter.name,
             .shard = parameter.slice(rank),
             .decay = parameter.decay,
             .kind = parameter.kind,
             .init = {}});
  }
  return map;
}

/// What rank `rank` adds to the gradient of one element in one step: in (-1, 1), a multiple of 2^-12, so that
/// f32 sums of a few of them are exact.
inline double contribution(std::size_t parameter, int rank, std::int64_t step, std::int64_t element) {
  std::uint64_t x = 0x9e3779b97f4a7c15ULL * (static_cast<std::uint64_t>(element) + 1) +
                    0xbf58476d1ce4e5b9ULL * (parameter + 1) +
                    0x94d049bb133111ebULL * static_cast<std::uint64_t>(rank + 1) +
                    0xd6e8feb86659fd93ULL * static_cast<std::uint64_t>(step + 1);
  x ^= x >> 31;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 29;
  return (static_cast<double>(x % 8191) - 4095.0) / 4096.0;
}

/// This rank's gradient of its slice.
inline at::Tensor local_gradient(const FakeParameter& parameter, std::size_t index, int rank,
                                 std::int64_t step, at::ScalarType type) {
  const ShardSpec spec = parameter.slice(rank);
  at::Tensor gradient = at::empty({spec.local_numel()}, at::kDouble);
  for (std::int64_t i = 0; i < spec.local_numel(); ++i) {
    gradient.mutable_data_ptr<double>()[i] = contribution(index, rank, step, spec.global_index(i));
  }
  return gradient.to(type).view(spec.local_shape);
}

/// One rank with the whole model and the sum of all ranks' gradients.
class DenseReference {
 public:
  DenseReference(std::vector<FakeParameter> model, int ranks, const OptimOptions& options,
                 at::ScalarType type)
      : model_(std::move(model)), ranks_(ranks), options_(options), moments_(model_.size()) {
    plain_.beta1 = options.beta1;
    plain_.beta2 = options.beta2;
    plain_.eps = options.eps;
    parallel::ParameterMap whole({.seed = 5, .dtype = type});
    for (const FakeParameter& parameter : model_) {
      const auto made = whole.add({.name = parameter.name,
                                   .shard = ShardSpec::whole(parameter.slice(0).global_shape),
                                   .decay = parameter.decay,
                                   .kind = parameter.kind,
                                   .init = {}});
      const at::Tensor flat = made->value.detach().to(at::kDouble).contiguous().view({-1});
      const double* data = flat.const_data_ptr<double>();
      values_.emplace_back(data, data + flat.numel());
    }
  }

  /// Returns the gradient norm.
  double step(std::int64_t step, double lr, double scale) {
    std::vector<std::vector<double>> gradients;
    double squares = 0.0;
    for (std::size_t p = 0; p < model_.size(); ++p) {
      std::vector<double> sum(values_[p].size(), 0.0);
      for (int rank = 0; rank < ranks_; ++rank) {
        const ShardSpec spec = model_[p].slice(rank);
        for (std::int64_t i = 0; i < spec.local_numel(); ++i) {
          const std::int64_t element = spec.global_index(i);
          sum[static_cast<std::size_t>(element)] += contribution(p, rank, step, element);
        }
      }
      for (double& element : sum) {
        element *= scale;
        squares += element * element;
      }
      gradients.push_back(std::move(sum));
    }
    const double norm = std::sqrt(squares);
    const double factor = std::min(1.0, options_.clip / (norm + 1e-6));
    ++plain_.updates;
    for (std::size_t p = 0; p < model_.size(); ++p) {
      for (double& element : gradients[p]) {
        element *= factor;
      }
      const double decay = model_[p].decay == DecayGroup::decay ? options_.weight_decay : 0.0;
      plain_.update(values_[p], moments_[p], gradients[p], lr, decay);
    }
    return norm;
  }

  const std::vector<double>& value(std::size_t parameter) const { return values_[parameter]; }
  const PlainAdamw::Moments& moments(std::size_t parameter) const { return moments_[parameter]; }

 private:
  std::vector<FakeParameter> model_;
  int ranks_ = 1;
  OptimOptions options_;
  PlainAdamw plain_;
  std::vector<std::vector<double>> values_;
  std::vector<PlainAdamw::Moments> moments_;
};

}  // namespace athanor::optim::tests
