// What a role takes and sends, by arithmetic: for --dry-run and to refuse what cannot fit.
#pragma once

#include <cstdint>
#include <string>

#include "config/plan/element_bytes.hpp"
#include "config/plan/memory_plan.hpp"
#include "config/plan/time_plan.hpp"
#include "config/plan/traffic_plan.hpp"
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

/// Tables for people: ranks and grid, parameters total and active, memory of a rank by part, bytes of a step
/// by purpose, the step's expected time where `plan.*` describes a machine, and of a student what its signals
/// take on the wire.
std::string describe_plan(const RunConfig& config, const RoleConfig& role,
                          const parallel::ParallelDims& dims);

/// Memory of a rank: plan.memory_bytes, or its share of the `available_bytes` of a machine with `local_ranks`
/// ranks.
std::int64_t rank_memory(const RunConfig& config, std::int64_t available_bytes, int local_ranks);

/// Throws ConfigError unless `plan` fits rank_memory(): at even routing, and, in commands that train, when
/// all tokens go to one rank. With plan.worst_case=warn the second is only said in the log.
void check_memory(const RunConfig& config, const MemoryPlan& plan, std::int64_t available_bytes,
                  int local_ranks);

}  // namespace athanor::config
