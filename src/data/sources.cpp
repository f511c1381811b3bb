#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "data/dataset.hpp"
#include "data/token_file.hpp"

namespace athanor::data {

namespace {

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(end + 1);
  }
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t");
  return first == std::string_view::npos ? std::string_view{}
                                         : text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

double parse_weight(std::string_view text, std::string_view entry) {
  double weight = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), weight);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(weight) || weight <= 0.0) {
    throw base::ConfigError(
        "the data source \"{}\" has the weight \"{}\" (a positive number is needed) write "
        "path:weight:domain, for instance corpus/prose-train:0.7:prose",
        entry, text);
  }
  return weight;
}

SourceSpec parse_source(std::string_view entry) {
  const std::vector<std::string_view> fields = split(entry, ':');
  if (fields.size() > 3 || trimmed(fields[0]).empty()) {
    throw base::ConfigError(
        "the data source \"{}\" cannot be read (the form is path[:weight[:domain]], separated "
        "by commas) correct it",
        entry);
  }
  SourceSpec spec;
  spec.path = token_file_prefix(std::string(trimmed(fields[0])));
  spec.domain = std::filesystem::path(spec.path).filename().string();
  if (fields.size() > 1) {
    spec.weight = parse_weight(trimmed(fields[1]), entry);
  }
  if (fields.size() > 2) {
    spec.domain = trimmed(fields[2]);
  }
  if (spec.domain.empty()) {
    throw base::ConfigError(
        "the data source \"{}\" names no domain (the path ends in a folder, or the domain after "
        "the second colon is empty) give the path without .bin, or a domain",
        entry);
  }
  return spec;
}

}  // namespace

std::vector<SourceSpec> parse_sources(const std::string& list) {
  std::vector<SourceSpec> sources;
  if (trimmed(list).empty()) {
    return sources;
  }
  std::map<std::string, std::string> seen_paths;
  std::map<std::string, bool> domain_is_named;
  for (const std::string_view entry : split(list, ',')) {
    const SourceSpec spec = parse_source(trimmed(entry));
    if (!seen_paths.emplace(spec.path, entry).second) {
      throw base::ConfigError(
          "the data source {} is listed twice (each file belongs to one domain once) raise its "
          "weight instead",
          spec.path);
    }
    // Two files that merely end in the same name are most likely not meant as one domain.
    const bool named = split(entry, ':').size() == 3;
    const auto [known, is_new] = domain_is_named.emplace(spec.domain, named);
    if (!is_new && !(named && known->second)) {
      throw base::ConfigError(
          "two data sources fall into the domain \"{}\" (\"{}\" is the second, and the name comes "
          "from a path) name the domain of both: path:weight:domain",
          spec.domain, entry);
    }
    sources.push_back(spec);
  }
  return sources;
}

}  // namespace athanor::data
