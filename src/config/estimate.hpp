// Parameters and memory of a run, by arithmetic: for --dry-run and to refuse what cannot fit.
#pragma once

#include <cstdint>
#include <string>

#include "config/run_config.hpp"
#include "model/transformer_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// Elements of the slices that the first (fullest) rank holds, by who holds the same.
struct RankParameters {
  std::int64_t tensor_sharded = 0;  ///< matrices divided over tp, equal on dp ranks
  std::int64_t key_value = 0;       ///< divided over min(tp, kv_heads)
  std::int64_t replicated = 0;      ///< norms and routers, equal on dp * tp ranks
  std::int64_t expert = 0;          ///< divided over ep, equal on dp * tp / ep ranks
  std::int64_t total() const { return tensor_sharded + key_value + replicated + expert; }
};
RankParameters count_rank_parameters(const model::TransformerConfig& config,
                                     const parallel::ParallelDims& dims);

/// Bytes on the fullest rank. Activations are an estimate, the rest is exact up to padding.
struct MemoryEstimate {
  std::int64_t parameters = 0;
  std::int64_t gradients = 0;
  std::int64_t optimizer = 0;  ///< master weights where they differ from the parameters, and two moments
  std::int64_t activations = 0;
  std::int64_t logits = 0;             ///< the chunk of logits that exists at one time
  std::int64_t program = 130'000'000;  ///< program and libraries before the first tensor
  std::int64_t link = 0;               ///< distill: the window of signals
  std::int64_t total() const {
    return parameters + gradients + optimizer + activations + logits + program + link;
  }
};
/// Of a role of `config` on `dims`; gradients and optimizer state only for commands that train.
/// `role.model.vocab_size` must be resolved.
MemoryEstimate estimate_memory(const RunConfig& config, const RoleConfig& role,
                               const parallel::ParallelDims& dims);

/// Several lines for people: ranks and grid, parameters total and active, bytes per rank, and of a student
/// what its signals take on the wire.
std::string describe_plan(const RunConfig& config, const RoleConfig& role,
                          const parallel::ParallelDims& dims);

/// Throws ConfigError unless `estimate` fits `available_bytes` shared by `local_ranks` ranks of one machine.
void check_memory(const MemoryEstimate& estimate, std::int64_t available_bytes, int local_ranks);

}  // namespace athanor::config
