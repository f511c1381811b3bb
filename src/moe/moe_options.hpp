// Options of the sparse layer, with their defaults.
#pragma once

#include <cstdint>
#include <vector>

#include "base/precision.hpp"

namespace athanor::moe {

enum class RouterScore { softmax, sigmoid };
enum class BalanceKind { squared, switch_loss, sequence, bias };
enum class BalanceCounts { batch, micro_step };
enum class DropPolicy { position, score };

/// How rows travel between a token's rank and its experts' ranks (`precision.*` of the configuration). `full`
/// is the compute type; the other formats are not for f64.
struct RowWire {
  base::WireType dispatch = base::WireType::full;  ///< tokens forward, gradients of the results backward
  base::WireType combine = base::WireType::full;   ///< results forward, gradients of the tokens backward
  base::Fp8Format fp8_format = base::Fp8Format::e4m3;
};

/// `moe.*` of the configuration.
struct MoeOptions {
  std::int64_t num_experts = 128;  ///< 0: dense model
  std::int64_t top_k = 4;
  std::int64_t ffn = 128;  ///< inner width of one expert
  std::int64_t shared_experts =
      0;                         ///< always-on experts of the same width, as one FFN of shared_experts * ffn
  std::int64_t groups = 1;       ///< expert groups for limited choice
  std::int64_t group_top_k = 0;  ///< groups a token may choose from; 0: all
  RouterScore score = RouterScore::softmax;
  bool normalize_top_k = true;   ///< gates of the chosen experts sum to 1
  double capacity_factor = 0.0;  ///< 0: dropless
  DropPolicy drop = DropPolicy::position;
  std::vector<BalanceKind> balance = {BalanceKind::squared};
  BalanceCounts balance_counts = BalanceCounts::batch;
  double balance_weight = 0.006;     ///< alpha
  double z_weight = 0.0;             ///< c_z; 0: no z-loss
  double bias_rate = 0.001;          ///< gamma of the bias update
  std::int64_t every = 1;            ///< every n-th layer is sparse (the last of each n)
  std::int64_t dispatch_chunks = 1;  ///< parts in which a layer's rows are exchanged; 1: no overlap
  RowWire wire;                      ///< not from `moe.*` but from `precision.*`
  bool force_uniform = false;        ///< benchmarks only: choice ignores the router, perfectly balanced

  bool uses(BalanceKind kind) const {
    for (BalanceKind used : balance) {
      if (used == kind) {
        return true;
      }
    }
    return false;
  }
};

/// Throws ConfigError naming option, value, reason and legal values unless `options` describe a sparse layer
/// whose experts `ep` ranks can hold.
void validate(const MoeOptions& options, int ep);

/// At most this many choices of one sequence of `seq` tokens per expert: ceil(capacity_factor * seq * k / E);
/// 0 when nothing is dropped (capacity_factor 0).
std::int64_t sequence_capacity(const MoeOptions& options, std::int64_t seq);

}  // namespace athanor::moe
