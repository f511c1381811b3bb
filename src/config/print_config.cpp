// A resolved configuration as text that reads back exactly.
#include <fmt/format.h>

#include <sstream>
#include <utility>

#include "config/command_line.hpp"
#include "config/key.hpp"

namespace athanor::config {
namespace {

// "[section]" and "key = value" lines of one role's values; those equal to `common`'s are left out when it is
// given.
std::string ini_lines(const RunConfig& config, const RoleConfig& role, const RoleConfig* common) {
  std::string text;
  std::string heading;
  for (const Key& key : all_keys()) {
    const bool is_shown = contains(key.commands, config.command) || key.from_checkpoint;
    const std::string value = key.get(config, role);
    if (!is_shown || (common != nullptr && (!key.per_role || key.get(config, *common) == value))) {
      continue;
    }
    const std::string section = key.section();
    std::string wanted = section;
    if (common != nullptr) {
      wanted = section.empty() ? role.name : role.name + "." + section;
    }
    if (wanted != heading) {
      heading = wanted;
      text += fmt::format("\n[{}]\n", heading);
    }
    text +=
        fmt::format("{} = {}\n", key.name.substr(section.empty() ? 0 : section.size() + 1), ini_value(value));
  }
  return text;
}

}  // namespace

std::string to_ini(const RunConfig& config) {
  std::string text =
      fmt::format("# athanor {}, resolved configuration of {}\n", version, command_name(config.command));
  text += ini_lines(config, config.roles[0], nullptr);
  for (std::size_t i = 1; i < config.roles.size(); ++i) {
    text += ini_lines(config, config.roles[i], &config.roles[0]);
  }
  return text;
}

std::string first_difference(const std::string& ini_a, const std::string& ini_b) {
  std::istringstream lines_a(ini_a);
  std::istringstream lines_b(ini_b);
  const auto split = [](const std::string& line) {
    const std::size_t equals = line.find(" = ");
    return equals == std::string::npos ? std::pair(line, line)
                                       : std::pair(line.substr(0, equals), line.substr(equals + 3));
  };
  std::string section;
  for (;;) {
    std::string line_a;
    std::string line_b;
    const bool has_a = static_cast<bool>(std::getline(lines_a, line_a));
    const bool has_b = static_cast<bool>(std::getline(lines_b, line_b));
    if (!has_a && !has_b) {
      break;
    }
    if (line_a != line_b) {
      return fmt::format("{}{}{} ({} and {})", section, section.empty() ? "" : ".", split(line_a).first,
                         split(line_a).second, split(line_b).second);
    }
    if (line_a.starts_with('[')) {
      section = line_a.substr(1, line_a.size() - 2);
    }
  }
  return "";
}

}  // namespace athanor::config
