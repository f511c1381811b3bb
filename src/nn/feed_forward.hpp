// The dense SwiGLU feed-forward layer, tensor and sequence parallel.
#pragma once

#include <memory>
#include <string>

#include "nn/functional.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::nn {

struct FeedForwardOptions {
  std::int64_t hidden = 0;
  std::int64_t ffn = 0;  ///< any number; block_of() divides it over tp
  double init_std = 0.02;
  double output_init_std = 0.02;
  Keep keep{};  ///< how what backward reads is kept
};

/// x [B, s, D] -> [B, s, D]: gather over tp, gate_up, swiglu, down, reduce-scatter over tp.
/// Parameters: gate_up.weight [2, F, D] sharded on F, down.weight [D, F] sharded on F. Collective over tp.
class FeedForward {
 public:
  FeedForward(const FeedForwardOptions& options, const std::string& prefix,
              parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);
  /// `kept_x`: x as others keep it for backward, so that it is kept once (undefined: nobody does); only
  /// where tp is 1, as others keep this rank's positions.
  at::Tensor forward(const at::Tensor& x_BsD, const StoredActivation& kept_x = {}) const;

 private:
  Keep keep_;
  const parallel::Communicator* tp_ = nullptr;
  std::shared_ptr<parallel::Parameter> gate_up_, down_;
};

}  // namespace athanor::nn
