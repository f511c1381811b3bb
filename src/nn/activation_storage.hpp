// Which tensors a model keeps in FP8 between forward and backward.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "base/precision.hpp"

namespace athanor::nn {

/// What backward reads, by the part of a layer that keeps it. Of every class only what may be rounded: never
/// expert ids, gates, scores of the router, log-sum-exps, statistics of norms or rotary tables.
enum class ActivationClass {
  attention,  ///< input of the q and kv projections, q and k before their norm, q, k, v, and the result
  ffn,        ///< dense and shared feed-forward: input, gate and up, and their product
  experts,    ///< sparse layers: the router's input, the experts' rows, gate and up, and the experts' results
  norm        ///< inputs of the norms
};

/// How a tensor is kept between forward and backward: as it is, or rounded to this FP8 format.
using Keep = std::optional<base::Fp8Format>;

/// `precision.store_activations` and `precision.fp8_format` of the configuration.
struct ActivationStorage {
  std::vector<ActivationClass> fp8_classes;
  base::Fp8Format format = base::Fp8Format::e4m3;

  Keep of(ActivationClass wanted) const {
    const bool is_fp8 = std::find(fp8_classes.begin(), fp8_classes.end(), wanted) != fp8_classes.end();
    return is_fp8 ? Keep(format) : std::nullopt;
  }
};

}  // namespace athanor::nn
