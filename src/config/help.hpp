// Texts about the command line, made from the key table.
#pragma once

#include <string>

#include "config/run_config.hpp"

namespace athanor::config {

/// What `athanor --help` prints: the commands.
std::string general_help();
/// What `athanor <command> --help` prints: usage, and its keys with defaults, types and units.
std::string command_help(Command command);
/// The text of docs/configuration.md.
std::string documentation();
/// "tokenize, train, evaluate, generate, bench step".
std::string command_list();

}  // namespace athanor::config
