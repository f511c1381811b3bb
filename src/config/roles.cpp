#include "config/roles.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "base/error.hpp"
#include "config/recording_plan.hpp"

namespace athanor::config {
namespace {

constexpr std::string_view teacher_name = "teacher";
constexpr std::string_view student_name = "student";

bool is_prefix(const std::string& text) {
  if (text == teacher_name || text == student_name) {
    return true;
  }
  const std::string several = fmt::format("{}.", student_name);
  return text.starts_with(several) && text.size() > several.size() &&
         text.find('.', several.size()) == std::string::npos;
}

void check_student_name(const std::string& name, const std::string& list) {
  const bool is_word = std::all_of(name.begin(), name.end(), [](unsigned char letter) {
    return std::isalnum(letter) != 0 || letter == '_' || letter == '-';
  });
  if (!is_word) {
    throw base::ConfigError(
        "distill.students={} ({} is no name of a role) use letters, digits, - and _ in each", list, name);
  }
  const bool is_section = std::any_of(all_keys().begin(), all_keys().end(), [&](const Key& key) {
    return key.section() == name || key.name == name;
  });
  if (is_section) {
    throw base::ConfigError(
        "distill.students={} ({} is the name of a section or key: student.{}. would have two meanings) "
        "choose another",
        list, name, name);
  }
}

}  // namespace

PrefixedKey split_key(const std::string& name) {
  if (const Key* key = find_key(name)) {
    return {key, ""};
  }
  PrefixedKey best;
  for (std::size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
    const std::string prefix = name.substr(0, dot);
    const Key* key = find_key(name.substr(dot + 1));
    if (key != nullptr && is_prefix(prefix)) {
      best = {key, prefix};
    }
  }
  return best;
}

int prefix_rank(const std::string& prefix, const RoleConfig& role) {
  if (prefix.empty()) {
    return 0;
  }
  if (prefix == role.name) {
    return 2;
  }
  return prefix == student_name && role.kind == parallel::RoleKind::student ? 1 : -1;
}

std::vector<RoleConfig> make_roles(const std::string& students) {
  std::vector<RoleConfig> roles(1);
  roles[0].name = teacher_name;
  const auto add = [&](const std::string& name) {
    RoleConfig role;
    role.name = name;
    role.kind = parallel::RoleKind::student;
    roles.push_back(std::move(role));
  };
  std::vector<std::string> names = split_list(students);
  for (const std::string& name : names) {
    check_student_name(name, students);
    add(fmt::format("{}.{}", student_name, name));
  }
  std::sort(names.begin(), names.end());
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end()) {
    throw base::ConfigError("distill.students={} ({} is there twice) name each student once", students,
                            *twice);
  }
  if (names.empty()) {
    add(std::string(student_name));
  }
  return roles;
}

std::string students_of(const std::vector<Setting>& settings) {
  std::string students;
  for (const Setting& setting : settings) {
    if (setting.key == "distill.students") {
      students = setting.value;
    }
  }
  return students;
}

bool describes_students(const std::vector<Setting>& settings) {
  return std::any_of(settings.begin(), settings.end(), [](const Setting& setting) {
    return setting.key.starts_with("distill.") || setting.key.starts_with("student.");
  });
}

std::string role_list(const std::vector<RoleConfig>& roles) {
  std::vector<std::string> names;
  std::transform(roles.begin(), roles.end(), std::back_inserter(names),
                 [](const RoleConfig& role) { return role.name; });
  return fmt::format("{}", fmt::join(names, ", "));
}

std::vector<int> resolve_ranks(const RunConfig& config, int world_size) {
  if (config.roles.size() == 1) {
    return {world_size};  // resolve_dims compares it with what was asked for
  }
  std::int64_t given = 0;
  std::string list;
  std::vector<std::string> open;
  for (const RoleConfig& role : config.roles) {
    if (!runs(config, role)) {
      continue;
    }
    given += role.ranks;
    list += fmt::format("{}{}.ranks={}", list.empty() ? "" : ", ", role.name, role.ranks);
    if (role.ranks == 0) {
      open.push_back(role.name + ".ranks");
    }
  }
  if (open.size() > 1) {
    throw base::ConfigError(
        "{} are 0 (that stands for the ranks that no other role has, which only one role can take; the job "
        "has {}) say how many ranks all roles but one have",
        fmt::join(open, " and "), world_size);
  }
  const std::int64_t rest = world_size - given;
  if (open.empty() ? rest != 0 : rest < 1) {
    throw base::ConfigError("{} (together {}{}, and the job has {} ranks) start it with {}{}, or change them",
                            list, given,
                            open.empty() ? "" : fmt::format(", which leaves none for {}", open[0]),
                            world_size, open.empty() ? given : given + 1, open.empty() ? "" : " or more");
  }
  std::vector<int> ranks;
  for (const RoleConfig& role : config.roles) {
    const int own = role.ranks > 0 ? role.ranks : static_cast<int>(rest);
    ranks.push_back(runs(config, role) ? own : 0);
  }
  return ranks;
}

int planned_ranks(const RunConfig& config, int world_size) {
  const bool all_given = std::all_of(config.roles.begin(), config.roles.end(), [&](const RoleConfig& role) {
    return role.ranks > 0 || !runs(config, role);
  });
  const auto add = [&](int sum, const RoleConfig& role) {
    return sum + (runs(config, role) ? role.ranks : 0);
  };
  return all_given ? std::accumulate(config.roles.begin(), config.roles.end(), 0, add) : world_size;
}

}  // namespace athanor::config
