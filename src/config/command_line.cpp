#include "config/command_line.hpp"

#include <fmt/ranges.h>

#include <boost/program_options.hpp>

#include <algorithm>
#include <map>
#include <set>

#include "base/error.hpp"
#include "config/help.hpp"
#include "config/key.hpp"
#include "config/roles.hpp"
#include "config/suggest.hpp"

namespace athanor::config {
namespace {

namespace po = boost::program_options;

// The flags that every command has.
const std::vector<std::string> flag_names = {"help", "print-config", "dry-run",
                                             "json", "version",      "dump-docs"};

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates,
                         const std::string& otherwise) {
  const std::string best = nearest(word, candidates);
  return best.empty() ? otherwise : fmt::format("did you mean {}?", best);
}

// The command in the leading words of the arguments; `words` are the ones it took.
Command find_command(const std::vector<std::string>& words) {
  const std::string all = fmt::format("{}", fmt::join(words, " "));
  std::vector<std::string> names;
  for (const Command command : all_commands) {
    names.emplace_back(command_name(command));
    if (names.back() == all) {
      return command;
    }
  }
  const std::vector<std::string> later = {"report"};
  if (std::find(later.begin(), later.end(), words[0]) != later.end()) {
    throw base::ConfigError("command {} (not in version {}) use one of: {}", words[0], version,
                            command_list());
  }
  for (const std::string family : {"bench", "checkpoint"}) {
    if (words[0] == family) {
      std::vector<std::string> members;
      std::copy_if(names.begin(), names.end(), std::back_inserter(members),
                   [&](const std::string& name) { return name.starts_with(family + " "); });
      throw base::ConfigError("command {} ({}) use one of: {}", all,
                              words.size() == 1 ? "its second word is missing"
                                                : fmt::format("there is none in version {}", version),
                              fmt::join(members, ", "));
    }
  }
  for (const std::string& name : names) {
    if (name == words[0]) {
      throw base::ConfigError("unexpected argument {} ({} takes options only) write --section.key=value",
                              words[1], name);
    }
  }
  throw base::ConfigError("unknown command {} (the commands are: {}) {}", all, command_list(),
                          did_you_mean(all, names, "see athanor --help"));
}

// "student.a" of "student.a.model.layer", "" for names without such a beginning.
std::string named_student(const std::string& name) {
  const std::size_t first = name.find('.');
  const std::size_t second = first == std::string::npos ? first : name.find('.', first + 1);
  return name.starts_with("student.") && second != std::string::npos ? name.substr(0, second) : "";
}

// The keys without and with the prefixes of roles; Boost takes no patterns, so the names of students come
// from the words themselves and are checked when the configuration is known.
po::options_description make_options(const std::vector<std::string>& words) {
  po::options_description options;
  for (const std::string& flag : flag_names) {
    options.add_options()(flag.c_str(), "");
  }
  options.add_options()("config", po::value<std::string>(), "");
  std::set<std::string> prefixes = {"teacher", "student"};
  for (const std::string& word : words) {
    const std::string name = word.starts_with("--") ? word.substr(2, word.find('=') - 2) : "";
    const PrefixedKey parts = split_key(name);
    if (parts.key != nullptr && !parts.prefix.empty()) {
      prefixes.insert(parts.prefix);
    }
  }
  for (const Key& key : all_keys()) {
    options.add_options()(key.name.c_str(), po::value<std::string>(), key.help.c_str());
    for (const std::string& prefix : prefixes) {
      if (key.per_role) {
        options.add_options()((prefix + "." + key.name).c_str(), po::value<std::string>(), key.help.c_str());
      }
    }
  }
  return options;
}

// What `name` may have been meant to be.
std::vector<std::string> suggestion_candidates(const std::string& name, bool with_flags) {
  std::vector<std::string> names;
  for (const Key& key : all_keys()) {
    names.push_back(key.name);
  }
  std::set<std::string> prefixes = {"teacher", "student"};
  if (const std::string student = named_student(name); !student.empty()) {
    prefixes.insert(student);
  }
  for (const std::string& prefix : prefixes) {
    for (const Key& key : all_keys()) {
      if (key.per_role) {
        names.push_back(prefix + "." + key.name);
      }
    }
  }
  if (with_flags) {
    names.insert(names.end(), flag_names.begin(), flag_names.end() - 1);
    names.push_back("config");
  }
  return names;
}

[[noreturn]] void throw_unknown_option(const std::string& name) {
  const std::string best = nearest(name, suggestion_candidates(name, true));
  throw base::ConfigError(
      "unknown option --{} (there is no such key) {}", name,
      best.empty() ? "see athanor <command> --help" : fmt::format("did you mean --{}?", best));
}

// Short names of keys, for the command line alone.
std::string spell_out(const std::string& word) {
  for (const std::string name : {"search", "trials"}) {
    if (word == "--" + name || word.starts_with("--" + name + "=")) {
      return "--distill." + word.substr(2);
    }
  }
  return word;
}

std::vector<po::option> split_options(const std::vector<std::string>& words) {
  // Boost takes an empty value only as a word of its own.
  std::vector<std::string> arguments;
  for (const std::string& written : words) {
    const std::string word = spell_out(written);
    const bool is_empty = word.starts_with("--") && word.find('=') == word.size() - 1;
    arguments.push_back(is_empty ? word.substr(0, word.size() - 1) : word);
    if (is_empty) {
      arguments.emplace_back();
    }
  }
  const po::options_description options = make_options(arguments);
  const int style = po::command_line_style::allow_long | po::command_line_style::long_allow_adjacent |
                    po::command_line_style::long_allow_next;
  try {
    return po::command_line_parser(arguments)
        .options(options)
        .style(style)
        .allow_unregistered()
        .run()
        .options;
  } catch (const po::invalid_command_line_syntax& error) {
    using Kind = po::invalid_command_line_syntax;
    const std::string name = error.get_option_name();
    if (error.kind() == Kind::missing_parameter) {
      throw base::ConfigError("{} (its value is missing) write {}=value", name, name);
    }
    if (error.kind() == Kind::extra_parameter) {
      throw base::ConfigError("{} (it takes no value) write {} alone", name, name);
    }
    throw base::ConfigError("{} (it cannot be read) write --section.key=value", name);
  }
}

// Options in the order in which they were written, flags taken out.
class CommandLineReader {
 public:
  CommandLineReader(const std::vector<std::string>& arguments, ParsedCommand& parsed) : parsed_(parsed) {
    for (const po::option& option : split_options(arguments)) {
      read(option);
    }
  }
  const std::string& config_path() const { return config_path_; }
  const std::vector<Setting>& settings() const { return settings_; }

 private:
  void read(const po::option& option) {
    if (option.position_key >= 0 || option.string_key.empty()) {
      const std::string word = option.original_tokens.empty() ? "" : option.original_tokens[0];
      throw base::ConfigError(
          "unexpected argument {} (options are written out in full) write --section.key=value, or "
          "--help",
          word);
    }
    if (option.unregistered) {
      throw_unknown_option(option.string_key);
    }
    const std::string value = option.value.empty() ? "" : option.value[0];
    const auto [seen, is_new] = values_.emplace(option.string_key, value);
    if (!is_new) {
      throw base::ConfigError("--{} is repeated ({}) give it once", option.string_key,
                              option.value.empty() ? "it was there already"
                                                   : fmt::format("first {}, then {}", seen->second, value));
    }
    if (!read_flag(option.string_key)) {
      if (option.string_key == "config") {
        config_path_ = value;
      } else {
        settings_.push_back(
            {option.string_key, value, fmt::format("--{}={}", option.string_key, value), true});
      }
    }
  }

  bool read_flag(const std::string& name) {
    const std::map<std::string, bool ParsedCommand::*> flags = {
        {"help", &ParsedCommand::help},       {"print-config", &ParsedCommand::print_config},
        {"dry-run", &ParsedCommand::dry_run}, {"json", &ParsedCommand::json},
        {"version", &ParsedCommand::version}, {"dump-docs", &ParsedCommand::dump_docs}};
    const auto flag = flags.find(name);
    if (flag == flags.end()) {
      return false;
    }
    parsed_.*(flag->second) = true;
    return true;
  }

  ParsedCommand& parsed_;
  std::string config_path_;
  std::map<std::string, std::string> values_;
  std::vector<Setting> settings_;
};

// A setting with its key looked up.
struct Resolved {
  const Setting* setting = nullptr;
  const Key* key = nullptr;
  std::vector<std::size_t> roles;  ///< indices of those it is for; none: of a role that the job does not have
  int rank = 0;                    ///< how closely it names its role (prefix_rank)
};

Resolved look_up(const Setting& setting, const RunConfig& config) {
  const auto [key, prefix] = split_key(setting.key);
  if (key == nullptr) {
    throw base::ConfigError(
        "{} (there is no key {}) {}", setting.origin, setting.key,
        did_you_mean(setting.key, suggestion_candidates(setting.key, false), "see docs/configuration.md"));
  }
  if (!prefix.empty() && !key->per_role) {
    throw base::ConfigError("{} ({} belongs to the whole run, not to a role) write {}", setting.origin,
                            key->name, key->name);
  }
  Resolved resolved{&setting, key, {}, 0};
  for (std::size_t i = 0; i < config.roles.size(); ++i) {
    if (const int rank = prefix_rank(prefix, config.roles[i]); rank >= 0) {
      resolved.roles.push_back(i);
      resolved.rank = rank;
    }
  }
  // A config file that serves several commands may name roles that this one does not have.
  if (resolved.roles.empty() && (setting.from_command_line || has_students(config.command))) {
    throw base::ConfigError("{} ({} has no role {}, only {}) use a prefix of those", setting.origin,
                            command_name(config.command), prefix, role_list(config.roles));
  }
  return resolved;
}

// Why a key that was given on the command line has no meaning there.
std::string why_not(const Key& key, Command command) {
  const bool reads_weights = command == Command::evaluate || command == Command::generate;
  if (reads_weights && key.from_checkpoint) {
    return "it comes from the checkpoint";
  }
  std::vector<std::string> users;
  for (const Command other : all_commands) {
    if (contains(key.commands, other)) {
      users.emplace_back(command_name(other));
    }
  }
  return fmt::format("{} does not use it, only {}", command_name(command), fmt::join(users, ", "));
}

void apply(const Resolved& resolved, RunConfig& config) {
  try {
    for (const std::size_t role : resolved.roles) {
      resolved.key->set(config, config.roles[role], resolved.setting->value);
    }
  } catch (const BadValue& bad) {
    throw base::ConfigError("{} {}", resolved.setting->origin, bad.what());
  }
}

// The value is legal, whatever it is for.
void check_value(const Resolved& resolved) {
  RunConfig unused;
  apply({resolved.setting, resolved.key, {0}, 0}, unused);
}

// Sets unprefixed keys first, then those of all students, then those of one role, each in the order of
// `settings`. Keys of config files that the command does not use are checked and left out: one file may serve
// several commands.
void apply_all(const std::vector<Setting>& settings, RunConfig& config, bool only_from_checkpoint) {
  std::vector<Resolved> list;
  for (const Setting& setting : settings) {
    list.push_back(look_up(setting, config));
  }
  std::stable_sort(list.begin(), list.end(),
                   [](const Resolved& a, const Resolved& b) { return a.rank < b.rank; });
  for (const Resolved& resolved : list) {
    const bool is_used = contains(resolved.key->commands, config.command);
    if (!is_used && resolved.setting->from_command_line) {
      throw base::ConfigError("{} ({}) leave it out", resolved.setting->origin,
                              why_not(*resolved.key, config.command));
    }
    check_value(resolved);
    if (only_from_checkpoint ? resolved.key->from_checkpoint : is_used) {
      apply(resolved, config);
    }
  }
}

bool reads_one_role(Command command) {
  return command == Command::evaluate || command == Command::generate ||
         command == Command::checkpoint_export;
}

// The roles that the settings may speak of, before the checkpoint of evaluate or generate is known: the
// students of distill.students, and those that prefixes name.
std::vector<RoleConfig> possible_roles(const std::vector<Setting>& settings, Command command) {
  if (has_students(command)) {
    return make_roles(students_of(settings));
  }
  if (!reads_one_role(command)) {
    return {RoleConfig{}};
  }
  std::set<std::string> names;
  for (const Setting& setting : settings) {
    if (const PrefixedKey parts = split_key(setting.key); parts.prefix.starts_with("student.")) {
      names.insert(parts.prefix.substr(parts.prefix.find('.') + 1));
    }
  }
  for (const std::string& name : split_list(students_of(settings))) {
    names.insert(name);
  }
  return make_roles(fmt::format("{}", fmt::join(names, ",")));
}

// Leaves the role whose weights are read, where the configuration has it.
void keep_one_role(RunConfig& config) {
  const auto wanted = std::find_if(config.roles.begin(), config.roles.end(),
                                   [&](const RoleConfig& role) { return role.name == config.source.role; });
  RoleConfig kept = wanted == config.roles.end() ? config.roles.front() : *wanted;
  config.roles.assign(1, std::move(kept));
}

std::vector<std::string> take_command_words(std::vector<std::string>& arguments) {
  const auto first_option = std::find_if(arguments.begin(), arguments.end(),
                                         [](const std::string& word) { return word.starts_with('-'); });
  std::vector<std::string> words(arguments.begin(), first_option);
  arguments.erase(arguments.begin(), first_option);
  return words;
}

}  // namespace

ParsedCommand parse_command_line(int argc, const char* const* argv) {
  std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
  const std::vector<std::string> words = take_command_words(arguments);
  ParsedCommand parsed;
  if (!words.empty()) {
    parsed.command = find_command(words);
    parsed.config.command = *parsed.command;
  }
  const CommandLineReader reader(arguments, parsed);
  if (parsed.help || parsed.version || parsed.dump_docs) {
    return parsed;
  }
  if (!parsed.command) {
    throw base::ConfigError("no command was given (the commands are: {}) see athanor --help", command_list());
  }
  if (!reader.config_path().empty()) {
    parsed.settings = read_ini(reader.config_path());
  }
  parsed.settings.insert(parsed.settings.end(), reader.settings().begin(), reader.settings().end());
  parsed.config.roles = possible_roles(parsed.settings, *parsed.command);
  apply_all(parsed.settings, parsed.config, false);
  if (!has_students(*parsed.command)) {
    keep_one_role(parsed.config);
  }
  return parsed;
}

RunConfig resolve_with_base(Command command, const std::vector<Setting>& base,
                            const std::vector<Setting>& settings) {
  RunConfig config;
  config.command = command;
  if (describes_students(base)) {
    config.roles = make_roles(students_of(base));
  }
  apply_all(base, config, true);
  apply_all(settings, config, false);
  const auto is_wanted = [&](const RoleConfig& role) { return role.name == config.source.role; };
  if (std::none_of(config.roles.begin(), config.roles.end(), is_wanted)) {
    throw base::ConfigError("--role={} (the checkpoint has {}) use one of these roles", config.source.role,
                            role_list(config.roles));
  }
  keep_one_role(config);
  return config;
}

}  // namespace athanor::config
