// Config files: `[section]`, `key = value`, comments from # or ; on. Keys become "section.key".
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace athanor::config {

/// One `key = value` as somebody wrote it.
struct Setting {
  std::string key;
  std::string value;
  std::string origin;  ///< for messages: "run.ini:12: model.layers=4" or "--model.layers=4"
  bool from_command_line = false;
};

/// Reads a config file. A value may be quoted ("..." with \" \\ \n \t); an unquoted one ends at white space
/// followed by # or ;. Throws MissingInputError, or ConfigError naming file and line for what is not INI and
/// for a repeated key.
std::vector<Setting> read_ini(const std::string& path);

/// As read_ini from text in memory; `name` stands for the path in messages.
std::vector<Setting> parse_ini(const std::string& text, const std::string& name);

/// The non-empty parts of a comma-separated list.
std::vector<std::string> split_list(const std::string& list);

/// `value` as read_ini reads it back: quoted where that is needed.
std::string ini_value(std::string_view value);

}  // namespace athanor::config
