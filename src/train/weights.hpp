// The weights of a model as one safetensors file with whole tensors: written and read in parallel at any
// layout.
#pragma once

#include <string>

#include "moe/statistics.hpp"
#include "parallel/communicator.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::train {

/// Writes `parameters` (whole tensors under their own names, in their compute type) and the expert biases
/// ("balance.bias") to <folder>/model.safetensors. Every slice is written by its first holder; the file
/// appears under its name only when complete. Collective over `role`. Throws CannotCreateError or IoError.
void save_weights(const std::string& folder, const parallel::ParameterMap& parameters,
                  const moe::BalanceState& balance, const parallel::Communicator& role);

/// Fills `parameters` (converting the number format where it differs) and the biases. Collective over `role`.
/// Throws MissingInputError, or CheckpointError naming the tensor whose shape or name does not match.
void load_weights(const std::string& folder, const parallel::ParameterMap& parameters,
                  moe::BalanceState& balance, const parallel::Communicator& role);

}  // namespace athanor::train
