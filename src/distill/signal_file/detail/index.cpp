#include "distill/signal_file/detail/index.hpp"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "distill/signal_file/recording.hpp"

namespace athanor::distill::signal_file::detail {
namespace {

using nlohmann::json;

constexpr std::uint64_t index_magic = 0x31584449'4e485441;  // "ATHNIDX1"
constexpr std::size_t head_bytes = 56;
constexpr std::size_t checksum_offset = 48;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw base::DataError("{} is damaged ({}) restore the recording from a copy, or record again", path, why);
}

ElementType type_of(const std::string& word) {
  for (const ElementType type : {ElementType::f64, ElementType::f32, ElementType::bf16, ElementType::f16,
                                 ElementType::i32, ElementType::f8_e4m3, ElementType::f8_e5m2}) {
    if (word == name_of(type)) {
      return type;
    }
  }
  throw std::invalid_argument("no element type " + word);
}

json to_json(const RecordingInfo& info) {
  json fields = json::array();
  for (const FieldInfo& field : info.fields) {
    fields.push_back({{"name", field.name},
                      {"type", name_of(field.type)},
                      {"scope", field.scope == FieldScope::sample ? "sample" : "step"},
                      {"positions", field.positions},
                      {"columns", field.columns},
                      {"per_temperature", field.per_temperature}});
  }
  return {
      {"format", "athanor signals"},
      {"id", fmt::format("{:016x}", info.id)},
      {"program", info.program},
      {"data",
       {{"train", info.dataset},
        {"mixture", info.mixture},
        {"tokenizer", info.tokenizer},
        {"seed", info.seed},
        {"seq", info.seq},
        {"reset_attention", info.reset_attention}}},
      {"teacher",
       {{"settings", info.teacher}, {"frozen", info.teacher_frozen}, {"identity", info.teacher_identity}}},
      {"fields", fields}};
}

RecordingInfo from_json(const json& text) {
  RecordingInfo info;
  info.id = std::stoull(text.at("id").get<std::string>(), nullptr, 16);
  info.program = text.at("program");
  const json& data = text.at("data");
  info.dataset = data.at("train");
  info.mixture = data.at("mixture");
  info.tokenizer = data.at("tokenizer");
  info.seed = data.at("seed");
  info.seq = data.at("seq");
  info.reset_attention = data.at("reset_attention");
  const json& teacher = text.at("teacher");
  info.teacher = teacher.at("settings").get<std::map<std::string, std::string>>();
  info.teacher_frozen = teacher.at("frozen");
  info.teacher_identity = teacher.at("identity");
  for (const json& entry : text.at("fields")) {
    FieldInfo field;
    field.name = entry.at("name");
    field.type = type_of(entry.at("type"));
    field.scope = entry.at("scope") == "step" ? FieldScope::step : FieldScope::sample;
    field.positions = entry.at("positions");
    field.columns = entry.at("columns");
    field.per_temperature = entry.at("per_temperature");
    info.fields.push_back(field);
  }
  return info;
}

template <typename Value>
Value value_at(std::span<const std::byte> bytes, std::size_t offset) {
  Value value;
  std::memcpy(&value, bytes.data() + offset, sizeof(Value));
  return value;
}

template <typename Value>
void put_at(std::string& bytes, std::size_t offset, Value value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(Value));
}

// Of head and description, as if the checksum itself were 0.
std::uint64_t head_checksum(std::string bytes) {
  put_at(bytes, checksum_offset, std::uint64_t{0});
  return base::hash_string(bytes);
}

}  // namespace

std::string encode_index(const RecordingInfo& info, bool is_complete, std::int64_t num_blocks,
                         std::span<const std::byte> table) {
  std::string description = to_text(info);
  description.resize((description.size() + 7) / 8 * 8, ' ');
  std::string bytes(head_bytes, '\0');
  put_at(bytes, 0, index_magic);
  put_at(bytes, 8, format_version);
  put_at(bytes, 12, std::uint32_t{is_complete ? 1U : 0U});
  put_at(bytes, 16, static_cast<std::uint64_t>(description.size()));
  put_at(bytes, 24, static_cast<std::uint64_t>(num_blocks));
  put_at(bytes, 32, static_cast<std::uint64_t>(table.size()));
  put_at(bytes, 40, base::hash_bytes(table.data(), table.size()));
  bytes += description;
  put_at(bytes, checksum_offset, head_checksum(bytes));
  bytes.append(reinterpret_cast<const char*>(table.data()), table.size());
  return bytes;
}

IndexHead decode_index(std::span<const std::byte> bytes, const std::string& path, bool with_table) {
  if (bytes.size() < head_bytes || value_at<std::uint64_t>(bytes, 0) != index_magic) {
    refuse(path, "it does not begin as the index of a recording");
  }
  if (const auto version = value_at<std::uint32_t>(bytes, 8); version != format_version) {
    throw base::DataError("{} has format version {} (this program reads version {}) use {} program", path,
                          version, format_version, version > format_version ? "a newer" : "an older");
  }
  const auto description_bytes = value_at<std::uint64_t>(bytes, 16);
  const auto table_bytes = value_at<std::uint64_t>(bytes, 32);
  const std::size_t rest = bytes.size() - head_bytes;
  if (description_bytes > rest || table_bytes != rest - description_bytes) {
    refuse(path, fmt::format("it has {} bytes where its sizes ask for {} and {}", bytes.size(),
                             description_bytes, table_bytes));
  }
  const std::string head(reinterpret_cast<const char*>(bytes.data()), head_bytes + description_bytes);
  if (head_checksum(head) != value_at<std::uint64_t>(bytes, checksum_offset)) {
    refuse(path, "the checksum of its description does not match");
  }
  IndexHead index;
  index.table = bytes.subspan(head_bytes + description_bytes);
  index.is_complete = value_at<std::uint32_t>(bytes, 12) == 1;
  index.num_blocks = static_cast<std::int64_t>(value_at<std::uint64_t>(bytes, 24));
  if (with_table &&
      base::hash_bytes(index.table.data(), index.table.size()) != value_at<std::uint64_t>(bytes, 40)) {
    refuse(path, "the checksum of its table does not match");
  }
  index.info = info_from_text(head.substr(head_bytes), path);
  return index;
}

}  // namespace athanor::distill::signal_file::detail

namespace athanor::distill::signal_file {

std::string to_text(const RecordingInfo& info) {
  return detail::to_json(info).dump();
}

RecordingInfo info_from_text(const std::string& text, const std::string& where) {
  try {
    return detail::from_json(nlohmann::json::parse(text));
  } catch (const std::exception& error) {
    detail::refuse(where, fmt::format("its description cannot be read: {}", error.what()));
  }
}

}  // namespace athanor::distill::signal_file
