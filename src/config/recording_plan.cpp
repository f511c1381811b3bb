#include "config/recording_plan.hpp"

#include <algorithm>
#include <charconv>

#include "base/error.hpp"
#include "config/ini.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;

void check_replay(const RunConfig& config) {
  const DistillSection& section = config.distill;
  if (section.source.empty()) {
    throw ConfigError(
        "distill.source is empty (signals must come from somewhere) use live, or name a folder that "
        "distill.record made");
  }
  if (!section.record.empty()) {
    throw ConfigError(
        "distill.record={} (distill.source={} is a recording already) leave one of them out, or use "
        "distill.source=live",
        section.record, section.source);
  }
  if (section.on_teacher_loss != OnTeacherLoss::stop) {
    throw ConfigError("distill.on_teacher_loss=labels (no teacher runs with distill.source={}) leave it out",
                      section.source);
  }
  if (section.search != SearchKind::none) {
    throw ConfigError(
        "distill.search=temperature (distill.source={}: a recording holds the temperatures of its own run) "
        "use "
        "distill.source=live",
        section.source);
  }
}

}  // namespace

bool is_replay(const RunConfig& config) {
  return config.command == Command::distill && config.distill.source != "live";
}

bool runs(const RunConfig& config, const RoleConfig& role) {
  return role.kind != parallel::RoleKind::teacher || !is_replay(config);
}

std::vector<double> record_temperatures(const RunConfig& config) {
  std::vector<double> temperatures;
  for (const std::string& item : split_list(config.distill.record_temperatures)) {
    double value = 0.0;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), value);
    const bool is_number = error == std::errc() && end == item.data() + item.size();
    if (!is_number || !(value >= config.distill.temperature.minimum)) {
      throw ConfigError(
          "distill.record_temperatures={} ({} is no temperature from distill.temperature_min={} on) give a "
          "comma-separated list such as 1,2,4",
          config.distill.record_temperatures, item, config.distill.temperature.minimum);
    }
    temperatures.push_back(value);
  }
  std::sort(temperatures.begin(), temperatures.end());
  temperatures.erase(std::unique(temperatures.begin(), temperatures.end()), temperatures.end());
  return temperatures;
}

void validate_recording(const RunConfig& config) {
  const DistillSection& section = config.distill;
  if (is_replay(config)) {
    check_replay(config);
  }
  if (!section.record_temperatures.empty() && section.record.empty()) {
    throw ConfigError(
        "distill.record_temperatures={} (distill.record is empty: nothing is recorded) name a folder in "
        "distill.record, or leave it out",
        section.record_temperatures);
  }
  if (!section.record.empty() && section.search != SearchKind::none) {
    throw ConfigError(
        "distill.record={} (distill.search makes many short runs, which cannot share a recording) leave one "
        "of "
        "them out",
        section.record);
  }
  record_temperatures(config);
}

}  // namespace athanor::config
