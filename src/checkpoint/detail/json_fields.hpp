// Strict access to JSON of unknown origin: every field has the wanted type and range or is a CheckpointError
// that names it. (The library's own conversions wrap numbers silently.)
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace athanor::checkpoint::detail::json_fields {

/// The value under `key` of an object; `where` names the object in messages.
const nlohmann::json& member(const nlohmann::json& object, const char* key, const std::string& where);
const nlohmann::json& array(const nlohmann::json& object, const char* key, const std::string& where);
std::string text(const nlohmann::json& object, const char* key, const std::string& where);
/// An integer in [low, high].
std::int64_t integer(const nlohmann::json& object, const char* key, const std::string& where,
                     std::int64_t low = 0, std::int64_t high = INT64_MAX);
/// A list of integers >= 0.
std::vector<std::int64_t> extents(const nlohmann::json& object, const char* key, const std::string& where);
/// A list of strings of 16 hexadecimal digits.
std::vector<std::uint64_t> hashes(const nlohmann::json& object, const char* key, const std::string& where);

}  // namespace athanor::checkpoint::detail::json_fields
