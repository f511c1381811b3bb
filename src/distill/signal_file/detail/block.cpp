#include "distill/signal_file/detail/block.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "distill/signal_file/detail/bytes.hpp"

namespace athanor::distill::signal_file::detail {
namespace {

constexpr std::uint64_t file_magic = 0x31544144'4e485441;   // "ATHNDAT1"
constexpr std::uint64_t block_magic = 0x314b4c42'4e485441;  // "ATHNBLK1"
constexpr std::size_t checksum_offset = 8;
constexpr std::size_t fixed_bytes = 112;
// Numbers beyond these are damage; their products stay within 64 bits.
constexpr std::int64_t largest_count = std::int64_t{1} << 31;
constexpr std::int64_t largest_size = std::int64_t{1} << 50;

[[noreturn]] void refuse(const std::string& where, const std::string& why) {
  throw base::DataError("{} is damaged ({}) restore the recording from a copy, or record again", where, why);
}

// The hash of a header as if its own checksum were 0.
std::uint64_t header_checksum(std::span<const std::byte> header) {
  std::vector<std::byte> copy(header.begin(), header.end());
  std::memset(copy.data() + checksum_offset, 0, sizeof(std::uint64_t));
  return base::hash_bytes(copy.data(), copy.size());
}

bool is_count(std::int64_t value) {
  return value >= 0 && value <= largest_count;
}

bool is_size(std::int64_t value) {
  return value >= 0 && value <= largest_size && value % 8 == 0;
}

void check_numbers(const BlockHeader& header, const std::string& where) {
  const auto is_place = [](std::int64_t value) { return value >= 0 && value <= largest_size; };
  const bool is_in_step = is_place(header.samples.first) && is_place(header.step_samples.first) &&
                          header.samples.first >= header.step_samples.first &&
                          header.samples.end() <= header.step_samples.end();
  if (header.writers == 0 || header.writer >= header.writers || !is_place(header.step) || !is_in_step) {
    refuse(where, "its numbers contradict each other");
  }
  if (header.outcome != StepOutcome::finite && header.outcome != StepOutcome::skipped) {
    refuse(where, "there is no such outcome of a step");
  }
  for (const double temperature : header.temperatures) {
    if (!std::isfinite(temperature) || temperature <= 0.0) {
      refuse(where, "a temperature is not positive");
    }
  }
}

void check_parts(const BlockHeader& header, const std::vector<FieldInfo>& fields, const std::string& where) {
  for (const BlockPart& part : header.parts) {
    if (part.field >= fields.size()) {
      refuse(where, fmt::format("it has field {} of {}", part.field, fields.size()));
    }
    const FieldInfo& field = fields[part.field];
    const std::int64_t times =
        field.per_temperature ? static_cast<std::int64_t>(header.temperatures.size()) : 1;
    const std::int64_t room =
        field.scope == FieldScope::sample ? header.record_bytes : header.step_part_bytes;
    const bool is_inside = is_count(part.positions.first) && is_count(part.positions.count) &&
                           is_count(part.columns.first) && is_count(part.columns.count) &&
                           part.positions.end() <= field.positions &&
                           part.columns.end() <= field.columns * times;
    if (!is_inside || !is_size(part.offset) || part.offset + part_bytes(part, fields) > room) {
      refuse(where, fmt::format("its part of field {} lies outside", field.name));
    }
  }
}

}  // namespace

std::int64_t part_bytes(const BlockPart& part, const std::vector<FieldInfo>& fields) {
  return part.numel() * bytes_of(fields[part.field].type);
}

std::vector<std::byte> encode_file_head(std::uint64_t recording, std::uint32_t number) {
  std::vector<std::byte> bytes;
  put(bytes, file_magic);
  put(bytes, format_version);
  put(bytes, number);
  put(bytes, recording);
  put(bytes, base::hash_bytes(bytes.data(), bytes.size()));
  return bytes;
}

void check_file_head(std::span<const std::byte> file, std::uint64_t recording, std::uint32_t number,
                     const std::string& path) {
  const std::vector<std::byte> expected = encode_file_head(recording, number);
  if (file.size() < expected.size() || std::memcmp(file.data(), expected.data(), expected.size()) != 0) {
    refuse(path, fmt::format("its beginning is not that of file {} of this recording", number));
  }
}

void encode_header(const BlockHeader& header, std::vector<std::byte>& bytes) {
  ATHANOR_CHECK(std::ssize(header.record_checksums) == header.samples.count, "{} checksums for {} records",
                header.record_checksums.size(), header.samples.count);
  const std::size_t begin = bytes.size();
  put(bytes, block_magic);
  put(bytes, std::uint64_t{0});
  put(bytes, static_cast<std::uint32_t>(header.header_bytes()));
  put(bytes, header.writer);
  put(bytes, header.writers);
  put(bytes, static_cast<std::uint32_t>(header.outcome));
  for (const std::int64_t value :
       {header.step, header.teacher_version, header.step_samples.first, header.step_samples.count,
        header.samples.first, header.samples.count, header.record_bytes, header.step_part_bytes}) {
    put(bytes, value);
  }
  put(bytes, static_cast<std::uint32_t>(header.parts.size()));
  put(bytes, static_cast<std::uint32_t>(header.temperatures.size()));
  put(bytes, header.step_part_checksum);
  for (const double temperature : header.temperatures) {
    put(bytes, temperature);
  }
  for (const BlockPart& part : header.parts) {
    put(bytes, part.field);
    put(bytes, std::uint32_t{0});
    for (const std::int64_t value :
         {part.offset, part.positions.first, part.positions.count, part.columns.first, part.columns.count}) {
      put(bytes, value);
    }
  }
  for (const std::uint64_t checksum : header.record_checksums) {
    put(bytes, checksum);
  }
  const std::span<std::byte> own(bytes.data() + begin, bytes.size() - begin);
  ATHANOR_CHECK(std::ssize(own) == header.header_bytes(), "a header of {} bytes became {}",
                header.header_bytes(), own.size());
  const std::uint64_t checksum = header_checksum(own);
  std::memcpy(own.data() + checksum_offset, &checksum, sizeof(checksum));
}

BlockHeader decode_header(std::span<const std::byte> bytes, const std::vector<FieldInfo>& fields,
                          const std::string& where) {
  if (bytes.size() < fixed_bytes) {
    refuse(where, "it is cut off");
  }
  std::span<const std::byte> rest = bytes;
  if (take<std::uint64_t>(rest) != block_magic) {
    refuse(where, "no block begins there");
  }
  const auto checksum = take<std::uint64_t>(rest);
  const auto size = take<std::uint32_t>(rest);
  if (size < fixed_bytes || size > bytes.size()) {
    refuse(where, "its header is cut off");
  }
  if (header_checksum(bytes.first(size)) != checksum) {
    refuse(where, "the checksum of its header does not match");
  }
  BlockHeader header;
  header.writer = take<std::uint32_t>(rest);
  header.writers = take<std::uint32_t>(rest);
  header.outcome = static_cast<StepOutcome>(take<std::uint32_t>(rest));
  for (std::int64_t* value :
       {&header.step, &header.teacher_version, &header.step_samples.first, &header.step_samples.count,
        &header.samples.first, &header.samples.count, &header.record_bytes, &header.step_part_bytes}) {
    *value = take<std::int64_t>(rest);
  }
  const auto num_parts = take<std::uint32_t>(rest);
  const auto num_temperatures = take<std::uint32_t>(rest);
  header.step_part_checksum = take<std::uint64_t>(rest);
  const bool is_possible =
      num_parts <= size && num_temperatures <= size && is_count(header.samples.count) &&
      is_count(header.step_samples.count) && is_size(header.record_bytes) &&
      is_size(header.step_part_bytes) &&
      header.record_bytes <= largest_size / std::max<std::int64_t>(header.samples.count, 1);
  if (!is_possible || fixed_bytes + 48UL * num_parts + 8UL * num_temperatures +
                              8UL * static_cast<std::size_t>(header.samples.count) !=
                          size) {
    refuse(where, "its sizes contradict each other");
  }
  for (std::uint32_t i = 0; i < num_temperatures; ++i) {
    header.temperatures.push_back(take<double>(rest));
  }
  for (std::uint32_t i = 0; i < num_parts; ++i) {
    BlockPart part;
    part.field = take<std::uint32_t>(rest);
    take<std::uint32_t>(rest);
    for (std::int64_t* value : {&part.offset, &part.positions.first, &part.positions.count,
                                &part.columns.first, &part.columns.count}) {
      *value = take<std::int64_t>(rest);
    }
    header.parts.push_back(part);
  }
  for (std::int64_t i = 0; i < header.samples.count; ++i) {
    header.record_checksums.push_back(take<std::uint64_t>(rest));
  }
  check_numbers(header, where);
  check_parts(header, fields, where);
  return header;
}

}  // namespace athanor::distill::signal_file::detail
