// From argc and argv to a RunConfig, and back to text.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/ini.hpp"
#include "config/run_config.hpp"

namespace athanor::config {

/// What the user asked for.
struct ParsedCommand {
  std::optional<Command> command;  ///< none: `athanor --help`, `--version` or `--dump-docs`
  RunConfig config;
  bool help = false;
  bool print_config = false;
  bool dry_run = false;
  bool json = false;
  bool version = false;
  bool dump_docs = false;         ///< print the text of docs/configuration.md
  std::vector<Setting> settings;  ///< config file, then command line
};

/// `<command> [--config=FILE] [--section.key=value ...]`; argv[0] is left out of account. The command line
/// wins over the file; a key prefixed with a role's name wins over one for all students, and that over one
/// without. Roles: those of distill.students; other commands than distill keep one. Throws ConfigError
/// (unknown, repeated or misplaced option, bad value) or MissingInputError (no such file); --help, --version
/// and
/// --dump-docs win over those errors that only come from values.
ParsedCommand parse_command_line(int argc, const char* const* argv);

/// The values of evaluate and generate that come from the checkpoint's run: `base` (its config.ini) first,
/// then the user's settings. Roles are those of `base`; the one that the setting `role` names stays, as
/// roles[0]. Throws as parse_command_line, and for a role that `base` does not have.
RunConfig resolve_with_base(Command command, const std::vector<Setting>& base,
                            const std::vector<Setting>& settings);

/// The resolved values of all keys of the config's command as a config file that reads back exactly.
std::string to_ini(const RunConfig& config);

/// Name of the first key in which two texts of to_ini differ, and both values: "optim.lr (0.1 and 0.2)"; ""
/// if none.
std::string first_difference(const std::string& ini_a, const std::string& ini_b);

}  // namespace athanor::config
