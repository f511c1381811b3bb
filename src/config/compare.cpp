#include "config/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string_view>

#include "config/command_line.hpp"
#include "config/ini.hpp"
#include "config/key.hpp"
#include "config/roles.hpp"

namespace athanor::config {
namespace {

bool is_about_the_job(const Key& key) {
  constexpr std::array<std::string_view, 25> names = {"run.dir",
                                                      "run.resume",
                                                      "run.allow_mismatch",
                                                      "run.device",
                                                      "run.end_time",
                                                      "run.stop_margin_s",
                                                      "run.check_collectives",
                                                      "run.check_deadline_s",
                                                      "data.tokenizer",
                                                      "data.train",
                                                      "data.valid",  // data: compared by content
                                                      "distill.source",
                                                      "distill.record",
                                                      "distill.record_temperatures",
                                                      "distill.search",
                                                      "distill.trials",
                                                      "distill.trial_steps",
                                                      "distill.window",
                                                      "distill.deadline_s",
                                                      "distill.students",  // students: compared by role
                                                      "moe.dispatch_chunks",
                                                      "distill.overlap_sends",
                                                      "optim.overlap_reduce",
                                                      "optim.overlap_gather",
                                                      "parallel.collectives"};  // the same bits
  const std::string section = key.section();
  const bool is_option = section.empty() && key.name != "frozen";
  return section == "train" || section == "checkpoint" || section == "monitor" || section == "plan" ||
         section == "watchdog" || section == "bench" || is_option ||
         std::find(names.begin(), names.end(), key.name) != names.end();
}

bool changes_the_run(const Key& key) {
  constexpr std::array<std::string_view, 3> harmless = {"model.dropout", "model.recompute", "model.init_std"};
  constexpr std::array<std::string_view, 9> sparse = {
      "moe.experts", "moe.top_k",           "moe.ffn",  "moe.shared_experts", "moe.groups", "moe.group_top_k",
      "moe.score",   "moe.normalize_top_k", "moe.every"};
  constexpr std::array<std::string_view, 3> data = {"run.seed", "batch.seq", "data.reset_attention"};
  // A frozen teacher has no optimizer state; pairs of layers have learned projections.
  constexpr std::array<std::string_view, 2> teaching = {"frozen", "distill.hidden_layers"};
  const auto is_in = [&](const auto& list) {
    return std::find(list.begin(), list.end(), key.name) != list.end();
  };
  return (key.section() == "model" && !is_in(harmless)) || is_in(sparse) || is_in(data) || is_in(teaching);
}

using Values = std::map<std::string, std::string>;

Values to_values(const std::vector<Setting>& settings) {
  Values values;
  for (const Setting& setting : settings) {
    values[setting.key] = setting.value;
  }
  return values;
}

std::vector<RoleConfig> roles_of(const std::vector<Setting>& settings) {
  return describes_students(settings) ? make_roles(students_of(settings)) : std::vector<RoleConfig>(1);
}

// What a text says of a key for one role: with the closest prefix. Nothing where it is silent.
std::optional<std::string> value_of(const Values& values, const Key& key, const RoleConfig& role) {
  const std::string of_students = role.kind == parallel::RoleKind::student ? "student." : "teacher.";
  for (const std::string& name : {role.name + "." + key.name, of_students + key.name, key.name}) {
    if (const auto found = values.find(name); found != values.end()) {
      return found->second;
    }
  }
  return std::nullopt;
}

std::string students_list(const std::vector<RoleConfig>& roles) {
  return roles.size() == 1 ? "none" : role_list({roles.begin() + 1, roles.end()});
}

}  // namespace

std::vector<Difference> compare_with_stored(const std::string& stored_ini, const RunConfig& current) {
  const std::vector<Setting> stored = parse_ini(stored_ini, "the checkpoint's configuration");
  const Values then = to_values(stored);
  const Values now = to_values(parse_ini(to_ini(current), "this configuration"));
  const std::vector<RoleConfig> stored_roles = roles_of(stored);
  std::vector<Difference> differences;
  if (const std::string was = students_list(stored_roles), is = students_list(current.roles); was != is) {
    differences.push_back({"distill.students", was, is, true});
  }
  for (std::size_t i = 0; i < current.roles.size(); ++i) {
    const RoleConfig& role = current.roles[i];
    if (std::none_of(stored_roles.begin(), stored_roles.end(),
                     [&](const RoleConfig& other) { return other.name == role.name; })) {
      continue;
    }
    for (const Key& key : all_keys()) {
      if (is_about_the_job(key) || (i > 0 && !key.per_role)) {
        continue;
      }
      const std::optional<std::string> was = value_of(then, key, role);
      const std::optional<std::string> is = value_of(now, key, role);
      if (was && is && *was != *is) {
        const std::string name = i > 0 ? role.name + "." + key.name : key.name;
        differences.push_back({name, *was, *is, changes_the_run(key)});
      }
    }
  }
  return differences;
}

std::string describe(const std::vector<Difference>& differences) {
  std::string text;
  for (const Difference& difference : differences) {
    text += fmt::format("\n  {:<28} checkpoint {:<16} now {}", difference.key, difference.stored,
                        difference.current);
  }
  return text;
}

}  // namespace athanor::config
