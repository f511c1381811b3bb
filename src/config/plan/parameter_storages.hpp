// The flat storages that a rank's optimizer keeps, by arithmetic: which parameters lie together, on how many
// ranks, with what padding.
#pragma once

#include <cstdint>
#include <vector>

#include "model/transformer_config.hpp"
#include "optim/bucket.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// Parameters with the same holders, kind and decay.
struct ParameterStorage {
  bool is_expert = false;
  std::vector<int> holders;  ///< role ranks that hold the same slices, this one among them
  optim::FlatLayout layout;

  int num_holders() const { return static_cast<int>(holders.size()); }
};

/// What a rank of a role holds, as model::Transformer and optim::ShardedOptimizer build it. `extra` are the
/// sizes of parameters that every rank holds besides (projections of a student).
std::vector<ParameterStorage> parameter_storages(const model::TransformerConfig& model,
                                                 const parallel::ParallelDims& dims, int role_rank,
                                                 const std::vector<std::int64_t>& extra = {});

}  // namespace athanor::config
