#include "distill/signal_file/reader.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"

namespace athanor::distill::signal_file {
namespace {

// How recorded columns become wanted ones: columns [from, from + count) become [to, to + count).
struct ColumnShift {
  std::int64_t from = 0;
  std::int64_t to = 0;
  std::int64_t count = 0;
};

std::vector<ColumnShift> shifts_of(const FieldInfo& field, const std::vector<double>& recorded,
                                   const std::vector<double>& wanted) {
  if (!field.per_temperature) {
    return {{0, 0, field.columns}};
  }
  std::vector<ColumnShift> shifts;
  for (std::size_t j = 0; j < wanted.size(); ++j) {
    const auto found = std::find(recorded.begin(), recorded.end(), wanted[j]);
    if (found != recorded.end()) {
      shifts.push_back({(found - recorded.begin()) * field.columns,
                        static_cast<std::int64_t>(j) * field.columns, field.columns});
    }
  }
  return shifts;
}

// Copies what `part` has of `target`; `row` is that of both. Returns the elements copied.
std::int64_t copy_part(const BlockPart& part, std::int64_t row, const std::byte* data,
                       const std::vector<ColumnShift>& shifts, const FieldTarget& target,
                       std::int64_t element_bytes) {
  std::int64_t copied = 0;
  for (const ColumnShift& shift : shifts) {
    // The recorded part in the columns of the target.
    const std::int64_t moved = shift.to - shift.from;
    const Box source{{Range{row, 1}, part.positions, {part.columns.first + moved, part.columns.count}}};
    Box wanted = target.active.with_rows({row, 1});
    wanted.dims[2] = intersect(wanted.dims[2], {shift.to, shift.count});
    const Box common = intersect(source, wanted);
    copy_box(common, source, data, target.memory, target.data, element_bytes);
    copied += common.numel();
  }
  return copied;
}

std::vector<const RecordedStep*> steps_of(const MappedRecording& recording, const Range& samples) {
  std::vector<const RecordedStep*> steps;
  for (std::int64_t sample = samples.first; sample < samples.end();) {
    const RecordedStep* step = recording.step_of(sample);
    if (step == nullptr) {
      throw base::DataError(
          "the recording {} does not hold sample {} (the run asks for samples {} to {}) record them, or "
          "train "
          "fewer steps",
          recording.folder(), sample, samples.first, samples.end() - 1);
    }
    steps.push_back(step);
    sample = step->samples.end();
  }
  return steps;
}

[[noreturn]] void refuse_hole(const MappedRecording& recording, const FieldInfo& field, std::int64_t found,
                              std::int64_t wanted, const Range& samples) {
  throw base::DataError(
      "the recording {} has {} of {} values of field {} of samples {} to {} (parts of it are missing) "
      "restore "
      "it from a copy, or record again",
      recording.folder(), found, wanted, field.name, samples.first, samples.end() - 1);
}

}  // namespace

void read_samples(const MappedRecording& recording, const Range& samples,
                  const std::vector<double>& temperatures, std::span<const FieldTarget> targets) {
  const std::vector<FieldInfo>& fields = recording.info().fields;
  std::vector<std::int64_t> copied(targets.size(), 0);
  for (const RecordedStep* step : steps_of(recording, samples)) {
    for (const MappedBlock& block : step->blocks) {
      const Range common = intersect(block.samples, samples);
      if (common.count == 0) {
        continue;
      }
      const BlockHeader header = recording.header_of(block);
      recording.check_records(block, header, common);
      for (std::size_t i = 0; i < targets.size(); ++i) {
        const FieldInfo& field = fields[targets[i].field];
        const std::vector<ColumnShift> shifts = shifts_of(field, header.temperatures, temperatures);
        for (const BlockPart& part : header.parts) {
          for (std::int64_t sample = common.first; part.field == targets[i].field && sample < common.end();
               ++sample) {
            const std::byte* record =
                block.payload.data() + (sample - header.samples.first) * header.record_bytes;
            copied[i] +=
                copy_part(part, sample, record + part.offset, shifts, targets[i], bytes_of(field.type));
          }
        }
      }
    }
  }
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const std::int64_t wanted = intersect(targets[i].active, targets[i].active.with_rows(samples)).numel();
    if (copied[i] != wanted) {
      refuse_hole(recording, fields[targets[i].field], copied[i], wanted, samples);
    }
  }
}

void read_step_field(const MappedRecording& recording, const RecordedStep& step, const FieldTarget& target) {
  const FieldInfo& field = recording.info().fields[target.field];
  std::int64_t copied = 0;
  for (const MappedBlock& block : step.blocks) {
    const BlockHeader header = recording.header_of(block);
    for (const BlockPart& part : header.parts) {
      if (part.field != target.field) {
        continue;
      }
      recording.check_step_part(block, header);
      const std::byte* data = block.payload.data() + header.samples.count * header.record_bytes + part.offset;
      copied += copy_part(part, 0, data, {{0, 0, field.columns}}, target, bytes_of(field.type));
    }
  }
  if (copied != target.active.numel()) {
    refuse_hole(recording, field, copied, target.active.numel(), step.samples);
  }
}

std::int64_t verify_samples(const MappedRecording& recording, const Range& samples, std::int64_t first_block,
                            std::int64_t blocks_apart) {
  std::int64_t bytes = 0;
  std::int64_t number = 0;
  for (const RecordedStep* step : steps_of(recording, samples)) {
    for (const MappedBlock& block : step->blocks) {
      if (number++ % blocks_apart != first_block) {
        continue;
      }
      const BlockHeader header = recording.header_of(block);
      recording.check_records(block, header, header.samples);
      recording.check_step_part(block, header);
      bytes += header.payload_bytes();
    }
  }
  return bytes;
}

}  // namespace athanor::distill::signal_file
