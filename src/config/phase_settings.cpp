#include "config/phase_settings.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "base/error.hpp"
#include "config/ini.hpp"
#include "config/key.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;

// Keys of `distill` whose values are read anew in each stage.
constexpr std::array stage_keys = {"alpha",
                                   "alpha_end",
                                   "alpha_schedule",
                                   "temperature",
                                   "temperature_step",
                                   "temperature_min",
                                   "temperature_period",
                                   "codec",
                                   "top_k",
                                   "samples",
                                   "loss",
                                   "skew",
                                   "beta",
                                   "hidden_loss",
                                   "hidden_weight",
                                   "hidden_decay",
                                   "attention_loss",
                                   "attention_weight",
                                   "attention_decay",
                                   "hidden_warmup_steps",
                                   "attention_warmup_steps"};

struct StageSetting {
  std::string stage;
  std::string key;
  std::string value;
};

std::vector<StageSetting> read_settings(const std::string& list) {
  std::vector<StageSetting> settings;
  for (const std::string& item : split_list(list)) {
    const std::size_t equals = item.find('=');
    const std::size_t dot = item.find('.');
    if (equals == std::string::npos || dot == std::string::npos || dot > equals) {
      throw ConfigError(
          "distill.phase_settings={} ({} is no setting of a stage) give a list of stage.key=value, for "
          "example "
          "soft_label.temperature=2",
          list, item);
    }
    settings.push_back(
        {item.substr(0, dot), item.substr(dot + 1, equals - dot - 1), item.substr(equals + 1)});
  }
  return settings;
}

void apply(RunConfig& config, const StageSetting& setting) {
  const Key* key = find_key("distill." + setting.key);
  ATHANOR_CHECK(key != nullptr, "there is no key distill.{}", setting.key);
  try {
    key->set(config, config.roles.front(), setting.value);
  } catch (const BadValue& error) {
    throw ConfigError("distill.phase_settings: {}.{}={} {}", setting.stage, setting.key, setting.value,
                      error.what());
  }
}

}  // namespace

DistillSection section_of_stage(const RunConfig& config, const std::string& stage) {
  if (config.distill.phase_settings.empty()) {
    return config.distill;
  }
  RunConfig changed = config;
  for (const StageSetting& setting : read_settings(config.distill.phase_settings)) {
    if (setting.stage == stage) {
      apply(changed, setting);
    }
  }
  return changed.distill;
}

void check_phase_settings(const RunConfig& config, const std::vector<std::string>& stages) {
  RunConfig scratch = config;
  std::set<std::string> seen;
  for (const StageSetting& setting : read_settings(config.distill.phase_settings)) {
    if (std::ranges::find(stages, setting.stage) == stages.end()) {
      throw ConfigError("distill.phase_settings={} (no stage is called {}) use one of: {}",
                        config.distill.phase_settings, setting.stage, fmt::join(stages, ", "));
    }
    if (std::ranges::find(stage_keys, std::string_view(setting.key)) == stage_keys.end()) {
      throw ConfigError("distill.phase_settings={} ({} does not belong to a stage) use one of: {}",
                        config.distill.phase_settings, setting.key, fmt::join(stage_keys, ", "));
    }
    if (!seen.insert(setting.stage + "." + setting.key).second) {
      throw ConfigError("distill.phase_settings={} ({}.{} is set twice) set it once",
                        config.distill.phase_settings, setting.stage, setting.key);
    }
    apply(scratch, setting);
  }
}

bool phase_settings_change(const RunConfig& config, const std::string& key) {
  return std::ranges::any_of(read_settings(config.distill.phase_settings),
                             [&](const StageSetting& setting) { return setting.key == key; });
}

}  // namespace athanor::config
