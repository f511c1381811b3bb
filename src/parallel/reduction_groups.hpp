// The one rule for gradients: a parameter's gradient is summed over exactly the ranks that hold the same
// slice.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::parallel {

/// Parameters of this rank whose slices are held by the same ranks.
struct ReductionGroup {
  Communicator comm;  ///< the holders, in role-rank order
  std::vector<std::shared_ptr<Parameter>> parameters;
};

/// Groups of the trainable parameters, derived from their ShardSpecs (never written by hand at a call site).
/// Collective over `role`: all ranks must have the same parameter names in the same order. Communicators are
/// made in one order on all ranks. Throws CommError when names differ between ranks.
std::vector<ReductionGroup> build_reduction_groups(const ParameterMap& parameters, const Communicator& role);

}  // namespace athanor::parallel
