#include "distill/signal_file/format.hpp"

#include <fmt/format.h>

#include "base/error.hpp"

namespace athanor::distill::signal_file {

std::string data_file_name(std::uint32_t number) {
  return fmt::format("signals-{:05}.bin", number);
}

std::string_view name_of(ElementType type) {
  switch (type) {
    case ElementType::f64:
      return "f64";
    case ElementType::f32:
      return "f32";
    case ElementType::bf16:
      return "bf16";
    case ElementType::f16:
      return "f16";
    case ElementType::i32:
      return "i32";
    case ElementType::f8_e4m3:
      return "f8_e4m3";
    case ElementType::f8_e5m2:
      return "f8_e5m2";
  }
  throw base::InternalError("no such element type");
}

std::int64_t bytes_of(ElementType type) {
  switch (type) {
    case ElementType::f64:
      return 8;
    case ElementType::f32:
    case ElementType::i32:
      return 4;
    case ElementType::bf16:
    case ElementType::f16:
      return 2;
    case ElementType::f8_e4m3:
    case ElementType::f8_e5m2:
      return 1;
  }
  throw base::InternalError("no such element type");
}

int RecordingInfo::field_index(std::string_view name) const {
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (fields[i].name == name) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

std::int64_t BlockHeader::header_bytes() const {
  constexpr std::int64_t fixed = 112;
  constexpr std::int64_t part_bytes = 48;
  const auto words = static_cast<std::int64_t>(temperatures.size()) + samples.count;
  return fixed + words * 8 + static_cast<std::int64_t>(parts.size()) * part_bytes;
}

}  // namespace athanor::distill::signal_file
