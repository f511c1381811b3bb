// What a recording of a teacher's signals is made of; docs/signal_files.md has it byte by byte.
//
// A folder: `signals.index`, replaced as a whole, and one `signals-NNNNN.bin` for each writing rank, only
// ever appended to. A data file is a row of blocks, one for each step of its rank. A block has a header,
// which describes it completely, and a record for each sample; what the index says of a block is a copy of
// its header, so blocks behind the last index are found by reading on.
//
// Legend: sample: global index of a sequence in training order. Part: what a record has of one field.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "distill/link/box.hpp"
#include "distill/link/signal_packet.hpp"

namespace athanor::distill::signal_file {

inline constexpr std::uint32_t format_version = 1;
inline constexpr const char* index_name = "signals.index";
/// "signals-00003.bin".
std::string data_file_name(std::uint32_t number);

/// Number format of a field's elements.
enum class ElementType { f64, f32, bf16, f16, i32, f8_e4m3, f8_e5m2 };
/// "f64", ...; the words of the index.
std::string_view name_of(ElementType type);
std::int64_t bytes_of(ElementType type);

/// Whether a field has values of each sample, or of a step (a head's weights).
enum class FieldScope { sample, step };

/// A field of the recording: its whole array, however ranks divide it.
struct FieldInfo {
  std::string name;
  ElementType type = ElementType::f32;
  FieldScope scope = FieldScope::sample;
  std::int64_t positions = 1;    ///< of a sample; of a step: lines
  std::int64_t columns = 1;      ///< with per_temperature: for each
  bool per_temperature = false;  ///< columns come once for each temperature of the block, in its order
  bool operator==(const FieldInfo&) const = default;
};

/// What a recording says of itself.
struct RecordingInfo {
  std::uint64_t id = 0;  ///< drawn when it was begun
  std::string program;
  std::string dataset;    ///< fingerprint of the training text
  std::string mixture;    ///< domain:weight,...: with it and the seed, the order of samples
  std::string tokenizer;  ///< hash of the model file, "" without one
  std::uint64_t seed = 0;
  std::int64_t seq = 0;
  bool reset_attention = false;
  std::map<std::string, std::string> teacher;  ///< model and number format as keys of a configuration
  bool teacher_frozen = false;
  std::string teacher_identity;  ///< "co-trained", or the checkpoint of a frozen one
  std::vector<FieldInfo> fields;

  /// Index of a field, -1 when there is none.
  int field_index(std::string_view name) const;
};

/// What a record, or the step part of a block, has of a field.
struct BlockPart {
  std::uint32_t field = 0;  ///< index in RecordingInfo::fields
  std::int64_t offset = 0;  ///< bytes from the beginning of the record or step part; a multiple of 8
  Range positions;
  Range columns;
  std::int64_t numel() const { return positions.count * columns.count; }
  bool operator==(const BlockPart&) const = default;
};

/// One rank's part of one step.
struct BlockHeader {
  std::uint32_t writer = 0;   ///< rank that wrote it
  std::uint32_t writers = 1;  ///< blocks that this step has
  StepOutcome outcome = StepOutcome::finite;
  std::int64_t step = 0;
  std::int64_t teacher_version = 0;
  Range step_samples;  ///< of the whole step
  Range samples;       ///< of this block, a record each
  std::int64_t record_bytes = 0;
  std::int64_t step_part_bytes = 0;
  std::vector<double> temperatures;
  std::vector<BlockPart> parts;
  std::vector<std::uint64_t> record_checksums;  ///< XXH3-64, one a record
  std::uint64_t step_part_checksum = 0;

  /// Encoded size of the header.
  std::int64_t header_bytes() const;
  std::int64_t payload_bytes() const { return samples.count * record_bytes + step_part_bytes; }
  std::int64_t total_bytes() const { return header_bytes() + payload_bytes(); }
  bool operator==(const BlockHeader&) const = default;
};

/// Where a block is.
struct BlockPlace {
  std::uint32_t file = 0;
  std::int64_t offset = 0;
  bool operator==(const BlockPlace&) const = default;
};

}  // namespace athanor::distill::signal_file
