#include "app/role_setup.hpp"

#include <filesystem>

#include "checkpoint/checkpoint_reader.hpp"
#include "config/recording_plan.hpp"
#include "config/roles.hpp"
#include "config/validate.hpp"
#include "parallel/dtype.hpp"
#include "parallel/run_agreed.hpp"
#include "train/state_dict.hpp"

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
  options.grad_wire = {role.precision.grad_comm, role.precision.fp8_format, role.precision.error_feedback,
                       role.precision.store_gradients};
  options.model.moe.wire = {role.precision.dispatch_comm, role.precision.combine_comm,
                            role.precision.fp8_format};
  options.model.storage = {role.precision.store_activations, role.precision.fp8_format};
  options.micro_batch = role.batch_micro;
  options.frozen = role.frozen;
  return options;
}

parallel::RoleSplit split_roles(const config::RunConfig& config, const parallel::Communicator& world) {
  std::vector<parallel::RoleRanks> roles;
  const std::vector<int> ranks = config::resolve_ranks(config, world.size());
  for (std::size_t i = 0; i < config.roles.size(); ++i) {
    if (config::runs(config, config.roles[i])) {
      roles.push_back({config.roles[i].name, config.roles[i].kind, ranks[i]});
    }
  }
  return parallel::RoleSplit(world, std::move(roles));
}

std::vector<config::Setting> read_checkpoint_settings(const std::string& folder) {
  const checkpoint::CheckpointReader reader(folder);
  std::vector<config::Setting> settings =
      config::parse_ini(reader.manifest().config, folder + ": configuration");
  const std::filesystem::path tokenizer = std::filesystem::path(folder) / checkpoint::tokenizer_file;
  if (std::filesystem::exists(tokenizer)) {
    std::erase_if(settings, [](const config::Setting& setting) { return setting.key == "data.tokenizer"; });
    settings.push_back({"data.tokenizer", tokenizer.string(), tokenizer.string(), false});
  }
  return settings;
}

LoadedModel::LoadedModel(const config::RunConfig& config, const parallel::Communicator& role)
    : grid_(config::resolve_dims(config.roles[0], role.size()), role),
      parameters_(
          {.seed = config.run.seed, .dtype = parallel::scalar_type(config.roles[0].precision.compute)}),
      model_(config.roles[0].model, parameters_, grid_),
      balance_(model_.make_balance_state()) {
  parallel::run_agreed(role, [&] {
    const checkpoint::CheckpointReader reader(config.source.checkpoint);
    train::load_weights(reader, config.source.role, parameters_, balance_);
  });
}

}  // namespace athanor::app
