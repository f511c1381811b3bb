// Memory of a rank by what it is for, from the configuration alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "config/plan/activation_plan.hpp"
#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// Bytes on the fullest rank. All but activations and program are exact up to alignment.
struct MemoryPlan {
  /// Program, libraries, MPI and the work buffers of the products' libraries, as measured.
  std::int64_t program = 180'000'000;
  std::int64_t parameters = 0;
  std::int64_t gradients = 0;   ///< this rank's, the sums it owns, and what error feedback keeps
  std::int64_t optimizer = 0;   ///< master weights where they differ from the parameters, and two moments
  std::int64_t snapshot = 0;    ///< copy of the state that an asynchronous checkpoint is written from
  std::int64_t link = 0;        ///< distill: the window of signals
  std::int64_t key_values = 0;  ///< generate: of the longest text
  /// Buffers of gradients under way at the end of backward (optim.overlap_reduce), when activations are gone.
  std::int64_t exchange = 0;
  ActivationPlan activations;  ///< at even routing
  ActivationPlan worst;        ///< when all tokens go to this rank in every layer

  std::int64_t state() const {
    return program + parameters + gradients + optimizer + snapshot + link + key_values;
  }
  std::int64_t total() const { return state() + std::max(activations.peak, exchange); }
  std::int64_t worst_total() const { return state() + std::max(worst.peak, exchange); }
  /// Name and bytes of each part of total(), zeros included; exchange is what goes beyond the activations.
  std::vector<std::pair<std::string_view, std::int64_t>> parts() const;
};

/// Of a role of `config` on `dims`; gradients and optimizer state only for commands that train.
/// `role.model.vocab_size` must be resolved.
MemoryPlan plan_memory(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims);

/// Whether the role's parameters are trained by the command.
bool is_trained(const RunConfig& config, const RoleConfig& role);

/// Sizes of the parameters that every rank of the role holds besides its model's: a student's projections.
std::vector<std::int64_t> extra_parameters(const RunConfig& config, const RoleConfig& role);

}  // namespace athanor::config
