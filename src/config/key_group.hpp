// How the key table is written down: keys that share a section and the commands that use them.
#pragma once

#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "config/key.hpp"
#include "config/value_text.hpp"

namespace athanor::config {

// What a key says of itself besides its name and field.
struct About {
  std::string help;
  std::string unit{};
  Range range{};
};

// Collects keys that share commands and a section.
class KeyGroup {
 public:
  KeyGroup(std::vector<Key>& keys, std::string section, const CommandSet& commands)
      : keys_(keys), section_(std::move(section)), commands_(commands) {}

  KeyGroup& per_role() {
    per_role_ = true;
    return *this;
  }
  KeyGroup& from_checkpoint() {
    from_checkpoint_ = true;
    return *this;
  }

  // `field(run, role)` returns a reference to the value.
  template <typename Field>
  KeyGroup& add(const std::string& name, Field field, const About& about) {
    using Value =
        std::remove_cvref_t<decltype(field(std::declval<RunConfig&>(), std::declval<RoleConfig&>()))>;
    Key key;
    key.name = section_.empty() ? name : section_ + "." + name;
    describe<Value>(key, about);
    key.unit = about.unit;
    key.help = about.help;
    key.per_role = per_role_;
    key.commands = commands_;
    key.from_checkpoint = from_checkpoint_;
    key.get = [field](const RunConfig& run, const RoleConfig& role) { return to_text(field(run, role)); };
    key.set = [field, range = about.range](RunConfig& run, RoleConfig& role, const std::string& text) {
      from_text(text, range, field(run, role));
    };
    keys_.push_back(std::move(key));
    return *this;
  }

 private:
  template <typename Value>
  static void describe(Key& key, const About& about) {
    if constexpr (std::is_same_v<Value, bool>) {
      key.type = "true or false";
    } else if constexpr (std::is_enum_v<Value>) {
      key.type = "one of";
      key.legal = legal_words<Value>();
    } else if constexpr (std::is_same_v<Value, std::vector<moe::BalanceKind>>) {
      key.type = "none or list of";
      key.legal = legal_words<moe::BalanceKind>();
    } else if constexpr (std::is_same_v<Value, std::vector<nn::ActivationClass>>) {
      key.type = "none or list of";
      key.legal = legal_words<nn::ActivationClass>();
    } else if constexpr (std::is_same_v<Value, std::map<std::string, double>>) {
      key.type = "list of name:number";
      key.legal = about.range.text();
    } else if constexpr (std::is_integral_v<Value>) {
      key.type = "integer";
      key.legal = about.range.text();
    } else if constexpr (std::is_floating_point_v<Value>) {
      key.type = "number";
      key.legal = about.range.text();
    } else {
      key.type = "text";
    }
  }

  std::vector<Key>& keys_;
  std::string section_;
  CommandSet commands_;
  bool per_role_ = false;
  bool from_checkpoint_ = false;
};

/// The keys of `distill.*` (distill_keys.cpp), after those that are there.
void add_distill_keys(std::vector<Key>& keys);
void add_guard_keys(std::vector<Key>& keys);
void add_watchdog_keys(std::vector<Key>& keys);
void add_plan_keys(std::vector<Key>& keys);
void add_tool_keys(std::vector<Key>& keys);

}  // namespace athanor::config
