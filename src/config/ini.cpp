#include "config/ini.hpp"

#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "base/error.hpp"

namespace athanor::config {
namespace {

constexpr std::string_view blanks = " \t\r";

std::string_view trim(std::string_view text) {
  const std::size_t first = text.find_first_not_of(blanks);
  if (first == std::string_view::npos) {
    return {};
  }
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

bool is_comment(std::string_view text) {
  return text.starts_with('#') || text.starts_with(';');
}

// The text of an unquoted value: up to white space followed by a comment sign.
std::string_view strip_comment(std::string_view text) {
  if (is_comment(text)) {
    return {};
  }
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (is_comment(text.substr(i)) && blanks.find(text[i - 1]) != std::string_view::npos) {
      return trim(text.substr(0, i));
    }
  }
  return text;
}

// The text inside quotes; nothing when the closing quote is missing or followed by more than a comment.
std::optional<std::string> unquote(std::string_view text) {
  std::string value;
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '"') {
      const std::string_view rest = trim(text.substr(i + 1));
      return rest.empty() || is_comment(rest) ? std::optional(value) : std::nullopt;
    }
    if (text[i] == '\\' && i + 1 < text.size()) {
      ++i;
      value += text[i] == 'n' ? '\n' : text[i] == 't' ? '\t' : text[i] == 'r' ? '\r' : text[i];
    } else {
      value += text[i];
    }
  }
  return std::nullopt;
}

// Reads settings line by line; `where()` names the current line.
class IniReader {
 public:
  explicit IniReader(const std::string& path) : path_(path) {}

  std::vector<Setting> read() {
    std::ifstream file(path_);
    if (!file || std::filesystem::is_directory(path_)) {
      throw base::MissingInputError("--config={} (the file cannot be read) give the path of a config file",
                                    path_);
    }
    return read(file);
  }

  std::vector<Setting> read(std::istream& lines) {
    std::string line;
    while (std::getline(lines, line)) {
      ++line_number_;
      read_line(trim(line));
    }
    if (lines.bad()) {
      throw base::IoError("{} (reading failed after line {}) check the disk", path_, line_number_);
    }
    return std::move(settings_);
  }

 private:
  std::string where() const { return fmt::format("{}:{}", path_, line_number_); }

  void read_line(std::string_view line) {
    if (line.empty() || is_comment(line)) {
      return;
    }
    if (line.starts_with('[')) {
      read_section(strip_comment(line));
      return;
    }
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos || trim(line.substr(0, equals)).empty()) {
      throw base::ConfigError("{}: {} (neither [section] nor key = value) correct the line", where(), line);
    }
    add(trim(line.substr(0, equals)), trim(line.substr(equals + 1)));
  }

  void read_section(std::string_view line) {
    if (!line.ends_with(']') || trim(line.substr(1, line.size() - 2)).empty()) {
      throw base::ConfigError("{}: {} (a section is written as [name]) correct the line", where(), line);
    }
    section_ = trim(line.substr(1, line.size() - 2));
  }

  void add(std::string_view key, std::string_view text) {
    Setting setting;
    setting.key = section_.empty() ? std::string(key) : fmt::format("{}.{}", section_, key);
    if (text.starts_with('"')) {
      const std::optional<std::string> value = unquote(text);
      if (!value) {
        throw base::ConfigError("{}: {}={} (a quoted value ends with one unescaped quote) correct the line",
                                where(), setting.key, text);
      }
      setting.value = *value;
    } else {
      setting.value = strip_comment(text);
    }
    setting.origin = fmt::format("{}: {}={}", where(), setting.key, setting.value);
    const auto [seen, is_new] = lines_.emplace(setting.key, line_number_);
    if (!is_new) {
      throw base::ConfigError("{}: {} is repeated (line {} has it already) keep one of the two", where(),
                              setting.key, seen->second);
    }
    settings_.push_back(std::move(setting));
  }

  std::string path_;
  std::string section_;
  int line_number_ = 0;
  std::map<std::string, int> lines_;
  std::vector<Setting> settings_;
};

}  // namespace

std::vector<Setting> read_ini(const std::string& path) {
  return IniReader(path).read();
}

std::vector<Setting> parse_ini(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  return IniReader(name).read(lines);
}

std::vector<std::string> split_list(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) {
    if (const std::string_view trimmed = trim(part); !trimmed.empty()) {
      parts.emplace_back(trimmed);
    }
  }
  return parts;
}

std::string ini_value(std::string_view value) {
  if (trim(value) == value && value.find_first_of("\"\\#;\n\t\r") == std::string_view::npos) {
    return std::string(value);
  }
  std::string quoted = "\"";
  for (const char letter : value) {
    switch (letter) {
      case '"':
        quoted += "\\\"";
        break;
      case '\\':
        quoted += "\\\\";
        break;
      case '\n':
        quoted += "\\n";
        break;
      case '\t':
        quoted += "\\t";
        break;
      case '\r':
        quoted += "\\r";
        break;
      default:
        quoted += letter;
    }
  }
  return quoted + "\"";
}

}  // namespace athanor::config
