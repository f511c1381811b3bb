// Reading samples of a recording into tensors of any layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "distill/signal_file/recording.hpp"

namespace athanor::distill::signal_file {

/// Where a field's values are wanted. Rows of both boxes are sample ids, or the one row 0 of a step field; of
/// a field with columns for each temperature, columns are those of the wanted temperatures, in their order.
struct FieldTarget {
  std::uint32_t field = 0;  ///< index in RecordingInfo::fields
  Box memory;               ///< what `data` holds
  Box active;               ///< what is filled
  std::byte* data = nullptr;
};

/// Fills `targets` (fields of samples) for some consecutive samples, from as many recorded steps as they come
/// from. Every record that is touched is compared with its checksum. Throws DataError when a part of a record
/// is missing or damaged.
void read_samples(const MappedRecording& recording, const Range& samples,
                  const std::vector<double>& temperatures, std::span<const FieldTarget> targets);

/// Fills `target` (a field of a step) from a recorded step. Throws DataError likewise.
void read_step_field(const MappedRecording& recording, const RecordedStep& step, const FieldTarget& target);

/// Compares records and step parts with their checksums, of every blocks_apart-th block of the steps that
/// hold `samples`, from the first_block-th on: ranks divide the work. Returns the bytes it read. Throws
/// DataError.
std::int64_t verify_samples(const MappedRecording& recording, const Range& samples, std::int64_t first_block,
                            std::int64_t blocks_apart);

}  // namespace athanor::distill::signal_file
