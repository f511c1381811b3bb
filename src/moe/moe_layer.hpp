// The sparse layer: route -> dispatch -> compute -> combine.
//
// Legend: B, S, s, D as in nn/token_batch.hpp; T routed tokens of this rank (its real positions of all B sequences,
// in (sample, position) order), E experts, e local experts (block of E/ep by global id), K choices, R received rows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "moe/moe_options.hpp"
#include "moe/statistics.hpp"
#include "nn/feed_forward.hpp"
#include "nn/token_batch.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::moe {

/// What the router decided for this rank's tokens. Gates and aux are differentiable.
struct Routing {
  at::Tensor topk_ids_TK;    ///< int64 expert ids
  at::Tensor gates_TK;       ///< accumulation type; 0 for dropped choices
  at::Tensor kept_TK;        ///< bool; undefined when nothing can be dropped
  at::Tensor aux;            ///< scalar: this rank's share of N * (balance + z) objective; undefined when there is none
};

/// What a forward pass of a sparse layer needs besides x.
struct MoeContext {
  const nn::TokenBatch* batch = nullptr;
  /// Constants f^_i of the gradient (see design section 4): [E] in the accumulation type; undefined before the first
  /// step (no balance gradient). Ignored for BalanceCounts::micro_step.
  at::Tensor balance_frequency_E;
  at::Tensor bias_E;               ///< undefined: none
  double valid_labels = 0;         ///< N of the global batch (the aux terms are scaled by it)
  double routed_tokens = 0;        ///< T of the global batch
  double num_sequences = 0;        ///< sequences of the global batch
  LayerStatistics* statistics = nullptr;  ///< nullptr: do not count (recomputation)
  bool want_aux = true;            ///< false in evaluation
  const at::Tensor* forced_ids_TK = nullptr;  ///< tests: routing is forced to these ids (gates still from scores)
};

struct MoeOutput {
  at::Tensor y_BsD;
  at::Tensor aux;  ///< as Routing::aux
};

/// Parameters: router.weight [E, D] (kept and used in the accumulation type), experts.gate_up [E, 2F, D] and
/// experts.down [E, D, F] sharded on E over ep, shared.* (a FeedForward of width shared_experts * F, tp-sharded).
/// Collective over ep (and over tp for capacity, sequence counts and shared experts), forward and backward, also for
/// ranks and experts without tokens.
class MoeLayer {
 public:
  struct Shape {
    std::int64_t hidden = 0;
    double init_std = 0.02;
    double output_init_std = 0.02;
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

/// b_i += gamma * sign(mean(c) - c_i) for one parameter set (design section 4, `bias`); counts summed over the layers
/// that share the set.
void update_bias(at::Tensor& bias_E, const at::Tensor& counts_E, double gamma);

}  // namespace athanor::moe
