#include "config/init_layers.hpp"

#include <charconv>
#include <string>

#include "base/error.hpp"
#include "config/ini.hpp"

namespace athanor::config {

using base::ConfigError;

std::vector<std::int64_t> init_layers(const RoleConfig& role) {
  std::vector<std::int64_t> layers;
  for (const std::string& word : split_list(role.init_layers)) {
    std::int64_t layer = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), layer);
    if (error != std::errc() || end != word.data() + word.size() || layer < 0) {
      throw ConfigError(
          "init_layers={} ({} is no layer) give a comma-separated list of layers, counted from 0",
          role.init_layers, word);
    }
    if (!layers.empty() && layer <= layers.back()) {
      throw ConfigError("init_layers={} (layer {} comes after layer {}) name each once, in rising order",
                        role.init_layers, layer, layers.back());
    }
    layers.push_back(layer);
  }
  if (!layers.empty() && static_cast<std::int64_t>(layers.size()) != role.model.layers) {
    throw ConfigError("init_layers={} (it names {} layers, and model.layers={}) name one for each",
                      role.init_layers, layers.size(), role.model.layers);
  }
  return layers;
}

void check_init(const RoleConfig& role) {
  if (role.init_mode == InitMode::shrink) {
    if (role.init.empty()) {
      throw ConfigError(
          "init_mode=shrink (init is empty: there is no larger model) name its checkpoint in init");
    }
    init_layers(role);
    return;
  }
  if (!role.init_layers.empty()) {
    throw ConfigError("init_layers={} (init_mode=exact takes all layers as they are) use init_mode=shrink",
                      role.init_layers);
  }
}

}  // namespace athanor::config
