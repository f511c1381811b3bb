// The local experts: one SwiGLU feed-forward each, computed over rows grouped by expert.
//
// Legend: E experts, e local ones (block of E/ep by global id), D hidden width, F inner width, R rows.
#pragma once

#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "moe/moe_options.hpp"
#include "moe/token_dispatcher.hpp"
#include "nn/stored_activation.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::moe {

class GroupedExperts {
 public:
  struct Init {
    double std = 0.02;
    double output_std = 0.02;
    nn::Keep keep{};  ///< how rows, gate and up are kept for backward
  };
  /// Makes `prefix`gate_up [E, 2F, D] (gate first) and `prefix`down [E, D, F], sharded on E over ep. Throws
  /// ConfigError when ep does not divide the experts.
  GroupedExperts(const MoeOptions& options, std::int64_t hidden, const Init& init, const std::string& prefix,
                 parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);

  /// Row buffer of `plan` with the tokens in its first R rows -> row buffer with down(swiglu(gate_up(row)))
  /// there (its tail is not filled). Differentiable, not collective. Experts without rows get zero weight
  /// gradients.
  at::Tensor forward(const at::Tensor& rows, const std::shared_ptr<const DispatchPlan>& plan) const;

 private:
  nn::Keep keep_;
  std::shared_ptr<parallel::Parameter> gate_up_, down_;
};

}  // namespace athanor::moe
