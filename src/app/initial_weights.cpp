#include "app/initial_weights.hpp"

#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "config/command_line.hpp"
#include "config/init_layers.hpp"
#include "train/training.hpp"

namespace athanor::app {
namespace {

// The model as its run knew it: what evaluate would build.
model::TransformerConfig stored_model(const checkpoint::CheckpointReader& reader, const std::string& role) {
  const config::Setting setting{"role", role, "init: role " + role, true};
  model::TransformerConfig model =
      config::resolve_with_base(config::Command::evaluate, read_checkpoint_settings(reader.folder()),
                                {setting})
          .roles[0]
          .model;
  const auto embedding = reader.manifest().tensors.find(role + "/parameters/embedding.weight");
  if (model.vocab_size == 0 && embedding != reader.manifest().tensors.end()) {
    model.vocab_size = embedding->second.shape.front();
  }
  return model;
}

}  // namespace

std::optional<train::ShrinkOptions> make_shrink_options(const config::RoleConfig& role,
                                                        const std::string& folder) {
  if (role.init_mode != config::InitMode::shrink) {
    return std::nullopt;
  }
  const checkpoint::CheckpointReader reader(folder);
  train::ShrinkOptions options;
  options.role = train::choose_source_role(reader, role.name);
  options.source = stored_model(reader, options.role);
  options.reduction = {config::init_layers(role), role.init_experts};
  return options;
}

void check_initial_weights(const config::RunConfig& config) {
  const std::string tokenizer = config.data.tokenizer.empty() ? "" : train::file_hash(config.data.tokenizer);
  for (const config::RoleConfig& role : config.roles) {
    if (role.init.empty()) {
      continue;
    }
    const std::string folder = checkpoint::resolve_checkpoint(role.init);
    const std::optional<train::ShrinkOptions> shrink = make_shrink_options(role, folder);
    if (!shrink) {
      continue;
    }
    try {
      train::check_shrink(*shrink, role.model, checkpoint::CheckpointReader(folder).manifest(), tokenizer);
    } catch (const base::ConfigError& error) {  // say whose value it is
      throw base::ConfigError("{}: {}", role.name, error.what());
    }
  }
}

}  // namespace athanor::app
