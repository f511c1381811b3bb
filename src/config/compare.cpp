#include "config/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "config/command_line.hpp"
#include "config/ini.hpp"
#include "config/key.hpp"

namespace athanor::config {
namespace {

// "layers" of "teacher.model.layers" and of "model.layers": what the key table knows it by.
const Key* find_unprefixed(const std::string& name) {
  if (const Key* key = find_key(name)) {
    return key;
  }
  const std::size_t dot = name.find('.');
  return dot == std::string::npos ? nullptr : find_key(name.substr(dot + 1));
}

bool is_about_the_job(const Key& key) {
  constexpr std::array<std::string_view, 7> names = {"run.dir",    "run.resume",     "run.allow_mismatch",
                                                     "run.device", "data.tokenizer", "data.train",
                                                     "ranks"};  // data: compared by content
  const std::string section = key.section();
  return section == "train" || section == "checkpoint" || section == "bench" || section.empty() ||
         key.name == "data.valid" || std::find(names.begin(), names.end(), key.name) != names.end();
}

bool changes_the_run(const Key& key) {
  constexpr std::array<std::string_view, 3> harmless = {"model.dropout", "model.recompute", "model.init_std"};
  constexpr std::array<std::string_view, 9> sparse = {
      "moe.experts", "moe.top_k",           "moe.ffn",  "moe.shared_experts", "moe.groups", "moe.group_top_k",
      "moe.score",   "moe.normalize_top_k", "moe.every"};
  constexpr std::array<std::string_view, 3> data = {"run.seed", "batch.seq", "data.reset_attention"};
  const auto is_in = [&](const auto& list) {
    return std::find(list.begin(), list.end(), key.name) != list.end();
  };
  return (key.section() == "model" && !is_in(harmless)) || is_in(sparse) || is_in(data);
}

std::map<std::string, std::string> to_map(const std::vector<Setting>& settings) {
  std::map<std::string, std::string> values;
  for (const Setting& setting : settings) {
    values[setting.key] = setting.value;
  }
  return values;
}

}  // namespace

std::vector<Difference> compare_with_stored(const std::string& stored_ini, const RunConfig& current) {
  const std::map<std::string, std::string> now = to_map(parse_ini(to_ini(current), "this configuration"));
  std::vector<Difference> differences;
  for (const Setting& setting : parse_ini(stored_ini, "the checkpoint's configuration")) {
    const auto found = now.find(setting.key);
    const Key* key = find_unprefixed(setting.key);
    if (found == now.end() || key == nullptr || is_about_the_job(*key) || found->second == setting.value) {
      continue;
    }
    differences.push_back({setting.key, setting.value, found->second, changes_the_run(*key)});
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
