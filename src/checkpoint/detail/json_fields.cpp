#include "checkpoint/detail/json_fields.hpp"

#include <charconv>

#include "base/error.hpp"

namespace athanor::checkpoint::detail::json_fields {
namespace {

[[noreturn]] void refuse(const std::string& where, const char* key, const char* wanted) {
  throw base::CheckpointError("{}: '{}' is malformed ({} is expected) use another checkpoint", where, key,
                              wanted);
}

// -1 unless `value` is an integer >= 0 that fits.
std::int64_t natural(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    return number <= static_cast<std::uint64_t>(INT64_MAX) ? static_cast<std::int64_t>(number) : -1;
  }
  return value.is_number_integer() ? value.get<std::int64_t>() : -1;
}

}  // namespace

const nlohmann::json& member(const nlohmann::json& object, const char* key, const std::string& where) {
  if (!object.is_object()) {
    throw base::CheckpointError("{} is malformed (an object is expected) use another checkpoint", where);
  }
  const auto found = object.find(key);
  if (found == object.end()) {
    throw base::CheckpointError("{}: '{}' is missing (the format requires it) use another checkpoint", where,
                                key);
  }
  return *found;
}

const nlohmann::json& array(const nlohmann::json& object, const char* key, const std::string& where) {
  const nlohmann::json& value = member(object, key, where);
  if (!value.is_array()) {
    refuse(where, key, "a list");
  }
  return value;
}

std::string text(const nlohmann::json& object, const char* key, const std::string& where) {
  const nlohmann::json& value = member(object, key, where);
  if (!value.is_string()) {
    refuse(where, key, "a string");
  }
  return value.get<std::string>();
}

std::int64_t integer(const nlohmann::json& object, const char* key, const std::string& where,
                     std::int64_t low, std::int64_t high) {
  const std::int64_t value = natural(member(object, key, where));
  if (value < low || value > high) {
    throw base::CheckpointError(
        "{}: '{}' is malformed (an integer from {} to {} is expected) use another "
        "checkpoint",
        where, key, low, high);
  }
  return value;
}

std::vector<std::int64_t> extents(const nlohmann::json& object, const char* key, const std::string& where) {
  std::vector<std::int64_t> result;
  for (const nlohmann::json& value : array(object, key, where)) {
    result.push_back(natural(value));
    if (result.back() < 0) {
      refuse(where, key, "a list of integers >= 0");
    }
  }
  return result;
}

std::vector<std::uint64_t> hashes(const nlohmann::json& object, const char* key, const std::string& where) {
  std::vector<std::uint64_t> result;
  for (const nlohmann::json& value : array(object, key, where)) {
    const std::string* digits = value.get_ptr<const std::string*>();
    std::uint64_t hash = 0;
    if (digits == nullptr || digits->size() != 16) {
      refuse(where, key, "a list of 16 hexadecimal digits each");
    }
    const char* end = digits->data() + digits->size();
    const auto [stop, error] = std::from_chars(digits->data(), end, hash, 16);
    if (error != std::errc{} || stop != end) {
      refuse(where, key, "a list of 16 hexadecimal digits each");
    }
    result.push_back(hash);
  }
  return result;
}

}  // namespace athanor::checkpoint::detail::json_fields
