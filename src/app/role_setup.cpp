#include "app/role_setup.hpp"

#include <filesystem>

#include "base/error.hpp"
#include "config/validate.hpp"
#include "parallel/dtype.hpp"
#include "train/weights.hpp"

namespace athanor::app {

train::RoleOptions make_role_options(const config::RoleConfig& role) {
  train::RoleOptions options;
  options.name = role.name;
  options.kind = role.kind;
  options.model = role.model;
  options.tp = role.parallel.tp;
  options.ep = role.parallel.ep;
  options.optim = role.optim;
  options.compute = role.precision.compute;
  options.grad_comm = role.precision.grad_comm;
  options.micro_batch = role.batch_micro;
  return options;
}

parallel::RoleSplit split_roles(const config::RunConfig& config, const parallel::Communicator& world) {
  std::vector<parallel::RoleRanks> roles;
  for (const config::RoleConfig& role : config.roles) {
    roles.push_back({role.name, role.kind, role.ranks > 0 ? role.ranks : world.size()});
  }
  return parallel::RoleSplit(world, std::move(roles));
}

std::vector<config::Setting> read_checkpoint_settings(const std::string& folder) {
  const std::filesystem::path path(folder);
  for (const char* file : {"config.ini", "model.safetensors"}) {
    if (!std::filesystem::exists(path / file)) {
      throw base::MissingInputError(
          "--checkpoint={} (there is no {} in it) give the folder of a finished run", folder, file);
    }
  }
  std::vector<config::Setting> settings = config::read_ini((path / "config.ini").string());
  if (std::filesystem::exists(path / tokenizer_copy)) {
    for (config::Setting& setting : settings) {
      if (setting.key == "data.tokenizer") {
        setting.value = (path / tokenizer_copy).string();
      }
    }
  }
  return settings;
}

LoadedModel::LoadedModel(const config::RunConfig& config, const parallel::Communicator& role)
    : grid_(config::resolve_dims(config.roles[0], role.size()), role),
      parameters_(
          {.seed = config.run.seed, .dtype = parallel::scalar_type(config.roles[0].precision.compute)}),
      model_(config.roles[0].model, parameters_, grid_),
      balance_(model_.make_balance_state()) {
  train::load_weights(config.source.checkpoint, parameters_, balance_, role);
}

}  // namespace athanor::app
