#include "config/value_text.hpp"

#include <algorithm>

#include "config/ini.hpp"

namespace athanor::config {

std::string in_range(const Range& range) {
  const std::string text = range.text();
  return text.empty() ? text : fmt::format(" {}", text);
}

namespace {

template <typename Enum>
std::string list_to_text(const std::vector<Enum>& values) {
  std::string list;
  for (const Enum value : values) {
    list += fmt::format("{}{}", list.empty() ? "" : ",", to_text(value));
  }
  return list.empty() ? "none" : list;
}

template <typename Enum>
std::vector<Enum> list_from_text(const std::string& text, const Range& range) {
  const std::string advice = fmt::format("give none, or a comma-separated list of: {}", legal_words<Enum>());
  std::vector<Enum> parsed;
  std::size_t first = 0;
  while (text != "none" && first <= text.size()) {
    const std::size_t comma = std::min(text.find(',', first), text.size());
    const std::string word = text.substr(first, comma - first);
    Enum value{};
    try {
      from_text(word, range, value);
    } catch (const BadValue&) {
      throw BadValue(fmt::format("('{}' is not a legal value) {}", word, advice));
    }
    if (std::find(parsed.begin(), parsed.end(), value) != parsed.end()) {
      throw BadValue(fmt::format("('{}' is there twice) {}", word, advice));
    }
    parsed.push_back(value);
    first = comma + 1;
  }
  return parsed;
}

}  // namespace

std::string to_text(const std::vector<moe::BalanceKind>& kinds) {
  return list_to_text(kinds);
}

std::string to_text(const std::vector<nn::ActivationClass>& classes) {
  return list_to_text(classes);
}

void from_text(const std::string& text, const Range&, bool& value) {
  if (text != "true" && text != "false") {
    throw BadValue("(neither true nor false) use one of: true, false");
  }
  value = text == "true";
}

void from_text(const std::string& text, const Range&, std::string& value) {
  value = text;
}

void from_text(const std::string& text, const Range& range, double& value) {
  const std::string legal = in_range(range);
  double parsed = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw BadValue(fmt::format("(not a number) give a number{}", legal));
  }
  if (!std::isfinite(parsed)) {
    throw BadValue(fmt::format("(not finite) give a number{}", legal));
  }
  if (!range.holds(parsed)) {
    throw BadValue(fmt::format("(out of range) give a number{}", legal));
  }
  value = parsed;
}

void from_text(const std::string& text, const Range& range, std::vector<moe::BalanceKind>& kinds) {
  kinds = list_from_text<moe::BalanceKind>(text, range);
}

void from_text(const std::string& text, const Range& range, std::vector<nn::ActivationClass>& classes) {
  classes = list_from_text<nn::ActivationClass>(text, range);
}

std::string to_text(const std::map<std::string, double>& numbers) {
  std::string list;
  for (const auto& [name, number] : numbers) {
    list += fmt::format("{}{}:{}", list.empty() ? "" : ",", name, number);
  }
  return list;
}

void from_text(const std::string& text, const Range& range, std::map<std::string, double>& numbers) {
  std::map<std::string, double> parsed;
  for (const std::string& item : split_list(text)) {
    const std::size_t colon = item.rfind(':');
    double number = 0.0;
    try {
      from_text(colon == std::string::npos ? "" : item.substr(colon + 1), range, number);
    } catch (const BadValue&) {
      throw BadValue(fmt::format("('{}' is not name:number) give a comma-separated list of name:number{}",
                                 item, in_range(range)));
    }
    if (!parsed.emplace(item.substr(0, colon), number).second) {
      throw BadValue(fmt::format("('{}' is there twice) name each once", item.substr(0, colon)));
    }
  }
  numbers = std::move(parsed);
}

}  // namespace athanor::config
