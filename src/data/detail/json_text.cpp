#include "data/detail/json_text.hpp"

#include <charconv>
#include <cstddef>
#include <string_view>

#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace athanor::data::detail {

namespace {

// The value of a \uXXXX escape at `at`, or -1.
int escaped_unit(std::string_view text, std::size_t at) {
  if (text.size() < at + 6 || text[at] != '\\' || text[at + 1] != 'u') {
    return -1;
  }
  int value = 0;
  const char* digits = text.data() + at + 2;
  const auto [end, error] = std::from_chars(digits, digits + 4, value, 16);
  return error == std::errc{} && end == digits + 4 ? value : -1;
}

bool is_high_surrogate(int unit) {
  return unit >= 0xD800 && unit <= 0xDBFF;
}
bool is_low_surrogate(int unit) {
  return unit >= 0xDC00 && unit <= 0xDFFF;
}

// Turns escapes of surrogates without a partner into escapes of U+FFFD; returns how many there were.
std::int64_t replace_lone_surrogates(std::string& line) {
  std::int64_t replaced = 0;
  for (std::size_t at = line.find('\\'); at != std::string::npos && at + 1 < line.size();) {
    const int unit = escaped_unit(line, at);
    std::size_t length = unit < 0 ? 2 : 6;
    if (is_high_surrogate(unit) && is_low_surrogate(escaped_unit(line, at + 6))) {
      length = 12;
    } else if (is_high_surrogate(unit) || is_low_surrogate(unit)) {
      line.replace(at + 2, 4, "fffd");
      ++replaced;
    }
    at = line.find('\\', at + length);
  }
  return replaced;
}

nlohmann::json parse_line(std::string& line, const std::string& where, std::int64_t& replaced) {
  nlohmann::json parsed = nlohmann::json::parse(line, nullptr, false);
  if (!parsed.is_discarded()) {
    return parsed;
  }
  replaced += replace_lone_surrogates(line);
  try {
    return nlohmann::json::parse(line);
  } catch (const nlohmann::json::parse_error& error) {
    throw base::DataError("{} is not JSON (at byte {}: \"{}\") every line of the file is one JSON object",
                          where, error.byte, line.substr(error.byte > 20 ? error.byte - 20 : 0, 30));
  }
}

}  // namespace

std::string json_text(std::string& line, const std::string& field, const std::string& where,
                      std::int64_t& replaced) {
  nlohmann::json parsed = parse_line(line, where, replaced);
  if (!parsed.is_object()) {
    throw base::DataError(
        "{} is a JSON {} (a document is an object like {{\"{}\": \"...\"}}) convert the file", where,
        parsed.type_name(), field);
  }
  const auto member = parsed.find(field);
  if (member == parsed.end()) {
    throw base::DataError(
        "{} has no member \"{}\" (that is where the text is looked for) rename the member that "
        "holds it",
        where, field);
  }
  if (!member->is_string()) {
    throw base::DataError("{} has a {} as \"{}\" (a string is needed) correct the line", where,
                          member->type_name(), field);
  }
  return std::move(member->get_ref<std::string&>());
}

}  // namespace athanor::data::detail
