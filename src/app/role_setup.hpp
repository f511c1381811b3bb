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

/// The settings stored with a checkpoint; its own copy of the tokenizer stands for the one it was trained
/// with. Throws MissingInputError when the folder holds no weights or no configuration.
std::vector<config::Setting> read_checkpoint_settings(const std::string& folder);

/// File name of a run's copy of its tokenizer.
inline constexpr const char* tokenizer_copy = "tokenizer.model";

/// A model with the weights of `config.source.checkpoint`, laid out as `config` says.
class LoadedModel {
 public:
  /// Collective over `role`.
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
