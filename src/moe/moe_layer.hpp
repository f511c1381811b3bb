// The sparse layer: route -> dispatch -> compute -> combine.
//
// Legend: B, S, s, D as in nn/token_batch.hpp; T routed tokens of this rank (its real positions of all B
// sequences, in (sample, position) order), E experts, e local experts (block of E/ep by global id), K
// choices, R received rows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "moe/expert_bias.hpp"
#include "moe/moe_options.hpp"
#include "moe/routing.hpp"
#include "moe/statistics.hpp"
#include "nn/activation_storage.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::moe {

struct MoeOutput {
  at::Tensor y_BsD;
  at::Tensor aux;  ///< as Routing::aux
};

/// Parameters: router.weight [E, D] (used in the accumulation type), experts.gate_up [E, 2F, D] and
/// experts.down [E, D, F] sharded on E over ep, shared.* (a FeedForward of width shared_experts * F,
/// tp-sharded). Collective over ep (and over tp for capacity, sequence counts and shared experts), forward
/// and backward, also for ranks and experts without tokens.
class MoeLayer {
 public:
  struct Shape {
    std::int64_t hidden = 0;
    double init_std = 0.02;
    double output_init_std = 0.02;
    nn::ActivationStorage storage{};  ///< of what backward reads
  };
  MoeLayer(const MoeOptions& options, const Shape& shape, const std::string& prefix,
           parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);
  ~MoeLayer();
  MoeLayer(MoeLayer&&) noexcept;
  MoeLayer& operator=(MoeLayer&&) noexcept;

  MoeOutput forward(const at::Tensor& x_BsD, const MoeContext& context) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace athanor::moe
