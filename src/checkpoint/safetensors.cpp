#include "checkpoint/safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace athanor::checkpoint {
namespace {

constexpr std::int64_t max_header_bytes = 100'000'000;  // the limit of the reference implementation

// Numbers with a fraction, or beyond 64 bits, would be converted in silence.
std::vector<std::int64_t> integers(const nlohmann::json& list) {
  std::vector<std::int64_t> values;
  for (const nlohmann::json& value : list.get_ref<const nlohmann::json::array_t&>()) {
    const bool too_large = value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX;
    if (!value.is_number_integer() || too_large) {
      throw base::DataError("not an integer");
    }
    values.push_back(value.get<std::int64_t>());
  }
  return values;
}

SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const nlohmann::json& value) {
  SafetensorsEntry entry;
  entry.name = name;
  try {
    entry.dtype = value.at("dtype").get<std::string>();
    entry.shape = integers(value.at("shape"));
    const std::vector<std::int64_t> offsets = integers(value.at("data_offsets"));
    if (offsets.size() != 2) {
      throw base::DataError("data_offsets has {} numbers", offsets.size());
    }
    entry.begin = offsets[0];
    entry.end = offsets[1];
  } catch (const std::exception& error) {
    throw base::DataError("{}: tensor {} has a malformed header entry ({}) write the file again", path, name,
                          error.what());
  }
  std::int64_t bytes = safetensors_element_bytes(entry.dtype);
  for (const std::int64_t extent : entry.shape) {
    if (extent < 0 || (extent > 0 && bytes > INT64_MAX / extent)) {
      throw base::DataError("{}: tensor {} has an impossible shape (extent {}) write the file again", path,
                            name, extent);
    }
    bytes *= extent;
  }
  if (entry.begin < 0 || entry.end < entry.begin || entry.end - entry.begin != bytes) {
    throw base::DataError(
        "{}: tensor {} spans bytes {} to {} (its shape and dtype need {}) write the file again", path, name,
        entry.begin, entry.end, bytes);
  }
  return entry;
}

// The header as JSON; discarded when it is none. A repeated name would hide one of two tensors.
nlohmann::json parse_unique_keys(const std::string& path, const std::string& text) {
  std::set<std::string> names;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, const nlohmann::json& key) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1 &&
        !names.insert(key.get<std::string>()).second) {
      throw base::DataError("{}: tensor {} is there twice (every name must be unique) write the file again",
                            path, key.get<std::string>());
    }
    return true;
  };
  return nlohmann::json::parse(text, check, /*allow_exceptions=*/false);
}

void check_contiguous(const std::string& path, const SafetensorsHeader& header, std::int64_t data_bytes) {
  std::int64_t expected = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin != expected) {
      throw base::DataError(
          "{}: tensor {} begins at byte {} ({} expected: tensors must not overlap or leave holes)", path,
          entry.name, entry.begin, expected);
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    throw base::DataError(
        "{}: holds {} bytes of tensors ({} by its header) it is truncated or not a safetensors file", path,
        data_bytes, expected);
  }
}

}  // namespace

const SafetensorsEntry* SafetensorsHeader::find(const std::string& name) const {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const SafetensorsEntry& entry) { return entry.name == name; });
  return found == entries.end() ? nullptr : &*found;
}

std::int64_t safetensors_element_bytes(const std::string& dtype) {
  static const std::map<std::string, std::int64_t> bytes = {
      {"F64", 8}, {"I64", 8}, {"U64", 8},     {"F32", 4},     {"I32", 4}, {"U32", 4}, {"F16", 2}, {"BF16", 2},
      {"I16", 2}, {"U16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};
  const auto found = bytes.find(dtype);
  if (found == bytes.end()) {
    throw base::DataError("safetensors dtype {} is not known (F64, F32, F16, BF16 and integers are)", dtype);
  }
  return found->second;
}

std::string layout_safetensors(SafetensorsHeader& header) {
  nlohmann::ordered_json json;
  if (!header.metadata.empty()) {
    json["__metadata__"] = header.metadata;
  }
  std::int64_t offset = 0;
  for (SafetensorsEntry& entry : header.entries) {
    std::int64_t bytes = safetensors_element_bytes(entry.dtype);
    for (const std::int64_t extent : entry.shape) {
      bytes *= extent;
    }
    entry.begin = offset;
    entry.end = offset + bytes;
    offset = entry.end;
    json[entry.name] = {
        {"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));  // little-endian, as every machine this runs on
  bytes += text;
  header.data_begin = static_cast<std::int64_t>(bytes.size());
  return bytes;
}

SafetensorsHeader read_safetensors_header(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw base::MissingInputError("{} cannot be opened ({}) give the folder that holds it", path,
                                  std::strerror(errno));
  }
  if (!std::filesystem::is_regular_file(path)) {
    throw base::DataError("{} is no file (a folder or a device) give the folder that holds the files", path);
  }
  const auto file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
  std::uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof(length));
  if (!file || length > static_cast<std::uint64_t>(std::min(max_header_bytes, file_bytes - 8))) {
    throw base::DataError(
        "{}: the header length is missing or larger than the file of {} bytes (truncated, or not a "
        "safetensors file)",
        path, file_bytes);
  }
  std::string text(length, '\0');
  file.read(text.data(), static_cast<std::streamsize>(length));
  const nlohmann::json json = parse_unique_keys(path, text);
  if (!json.is_object()) {
    throw base::DataError("{}: the header is not a JSON object (damaged, or not a safetensors file)", path);
  }
  SafetensorsHeader header;
  header.data_begin = static_cast<std::int64_t>(8 + length);
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      if (value.is_object()) {
        for (const auto& [key, text_value] : value.items()) {
          header.metadata[key] = text_value.is_string() ? text_value.get<std::string>() : text_value.dump();
        }
      }
    } else {
      header.entries.push_back(parse_entry(path, name, value));
    }
  }
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return a.begin < b.begin || (a.begin == b.begin && a.end < b.end);
            });
  check_contiguous(path, header, file_bytes - header.data_begin);
  return header;
}

}  // namespace athanor::checkpoint
