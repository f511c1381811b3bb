// The roles of a job, and the prefixes that keys of one role carry: `teacher.`, `student.`, `student.NAME.`.
#pragma once

#include <string>
#include <vector>

#include "config/ini.hpp"
#include "config/key.hpp"
#include "config/run_config.hpp"

namespace athanor::config {

/// A key's name as somebody wrote it, in parts.
struct PrefixedKey {
  const Key* key = nullptr;  ///< nullptr: there is no such key
  std::string prefix;        ///< "teacher", "student", "student.a"; "" without one
};
PrefixedKey split_key(const std::string& name);

/// How closely a prefix names a role: 0 none ("": every role), 1 all students, 2 this role alone; -1: it does
/// not name it.
int prefix_rank(const std::string& prefix, const RoleConfig& role);

/// The teacher, and the students of a `distill.students` list: "student" for an empty one, else "student.a",
/// ... Throws ConfigError for a name that is no word, is a section's or is there twice.
std::vector<RoleConfig> make_roles(const std::string& students);

/// The value of distill.students in `settings` (the last one), "" without one.
std::string students_of(const std::vector<Setting>& settings);

/// Whether `settings` describe a job with students.
bool describes_students(const std::vector<Setting>& settings);

/// The names of roles, comma-separated: "teacher, student.a".
std::string role_list(const std::vector<RoleConfig>& roles);

/// Ranks of each role on `world_size` ranks; a role with ranks=0 takes the rest. Throws ConfigError when they
/// do not add up, naming which and how many.
std::vector<int> resolve_ranks(const RunConfig& config, int world_size);

/// The ranks that a dry run in one process plans for: the sum over roles where all are given, else
/// `world_size`.
int planned_ranks(const RunConfig& config, int world_size);

}  // namespace athanor::config
