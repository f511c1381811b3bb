// One key of the configuration: its name, type, legal values, meaning, and how it is read and written.
#pragma once

#include <bitset>
#include <functional>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "config/run_config.hpp"

namespace athanor::config {

/// A set of commands, by index in all_commands.
using CommandSet = std::bitset<all_commands.size()>;
CommandSet commands(std::initializer_list<Command> list);
inline bool contains(const CommandSet& set, Command command) {
  return set.test(static_cast<std::size_t>(command));
}

/// Legal values of a number.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_is_legal = true;
  bool max_is_legal = true;

  bool holds(double value) const;
  /// ">= 1", "> 0", "in [0, 1)"; "" when everything is legal.
  std::string text() const;
};
inline Range at_least(double min) {
  return {.min = min};
}
inline Range above(double min) {
  return {.min = min, .min_is_legal = false};
}
/// [min, max].
inline Range between(double min, double max) {
  return {.min = min, .max = max};
}
/// [min, max).
inline Range below(double min, double max) {
  return {.min = min, .max = max, .max_is_legal = false};
}

/// A value that a key cannot take; the message is "(why) what to do", put after the key and the value.
class BadValue : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Key {
  std::string name;       ///< "model.layers"; without a section: an option of a command, "input"
  std::string type;       ///< "integer", "number", "true or false", "text", "one of", "list of"
  std::string legal;      ///< legal values in words: ">= 1", "f32, bf16"; "" when all are
  std::string unit;       ///< "tokens"; "" when it has none
  std::string help;       ///< one sentence
  bool per_role = false;  ///< may be prefixed with a role's name
  CommandSet commands;    ///< where it has a meaning
  bool from_checkpoint =
      false;  ///< evaluate and generate take it from the checkpoint's run unless told otherwise
  std::function<std::string(const RunConfig&, const RoleConfig&)> get;
  /// Throws BadValue.
  std::function<void(RunConfig&, RoleConfig&, const std::string&)> set;

  /// "model" of "model.layers"; "" for a command's option.
  std::string section() const;
  /// "integer >= 1", "one of f32, bf16".
  std::string describe_type() const;
};

/// A section of keys and what it is about.
struct Section {
  std::string name;
  std::string help;
};

/// The sections in the order in which help, --print-config and the documentation show them.
const std::vector<Section>& all_sections();
/// The keys, by section in the same order.
const std::vector<Key>& all_keys();
/// nullptr when there is none of that name.
const Key* find_key(const std::string& name);

}  // namespace athanor::config
