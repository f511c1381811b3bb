// Which experts a token goes to, and with what weight.
//
// Legend: T routed tokens of this rank, D hidden width, E experts, K choices, B sequences of the micro-batch.
#pragma once

#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "moe/balance_loss.hpp"
#include "moe/moe_options.hpp"
#include "moe/routing.hpp"
#include "nn/stored_activation.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::moe {

/// Token-choice top-k router. Everything after the cast of x and of the weight is in the accumulation type.
///
/// Scores s are the softmax or the sigmoid of the logits x W^T; s' = s / sum_j s_j. Choice: the K largest s
/// (+ bias), ties to the lower id, optionally within the best expert groups. Gates: s of the chosen (without
/// bias), divided by their sum when normalize_top_k. s' and normalised gates are a softmax of log s, so there
/// is no epsilon that a router could hide its scores under, and no 0/0.
class TopKRouter {
 public:
  /// Makes the parameter `prefix`weight [E, D], whole on every rank. `grid` must outlive this.
  TopKRouter(const MoeOptions& options, std::int64_t hidden, double init_std, const std::string& prefix,
             parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid);

  /// Routes x_TD, the real positions of this rank's slice of all B sequences. Adds to *context.statistics.
  /// Collective as BalanceLoss::terms, and over tp (an all-gather) when capacity is limited. The weight's
  /// gradient is that of `kept_x`, x as it is kept for backward (undefined: x itself).
  Routing forward(const at::Tensor& x_TD, const MoeContext& context,
                  const nn::StoredActivation& kept_x = {}) const;

 private:
  MoeOptions options_;
  const parallel::ProcessGrid* grid_;
  BalanceLoss balance_;
  std::shared_ptr<parallel::Parameter> weight_;
};

}  // namespace athanor::moe
