// From the configuration of a role to the options of the libraries, and to a model with its weights.
#pragma once

#include <string>
#include <vector>

#include "config/ini.hpp"
#include "config/run_config.hpp"
#include "model/transformer.hpp"
#include "parallel/communicator.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/process_grid.hpp"
#include "train/trainer.hpp"

namespace athanor::app {

train::RoleOptions make_role_options(const config::RoleConfig& role);

/// The roles of the job over the ranks of `world`. Collective.
parallel::RoleSplit split_roles(const config::RunConfig& config, const parallel::Communicator& world);

/// The settings stored in a checkpoint (a folder that resolve_checkpoint gave); its own copy of the tokenizer
/// stands for the one it was trained with. Throws CheckpointError.
std::vector<config::Setting> read_checkpoint_settings(const std::string& folder);

/// A model with the weights of a checkpoint, laid out as `config` says.
class LoadedModel {
 public:
  /// Reads config.source.checkpoint. Collective over `role`.
  LoadedModel(const config::RunConfig& config, const parallel::Communicator& role);
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;

  const model::Transformer& model() const { return model_; }
  const parallel::ProcessGrid& grid() const { return grid_; }
  const moe::BalanceState& balance() const { return balance_; }

 private:
  parallel::ProcessGrid grid_;
  parallel::ParameterMap parameters_;
  model::Transformer model_;
  moe::BalanceState balance_;
};

}  // namespace athanor::app
