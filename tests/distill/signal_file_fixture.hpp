// Recordings in a folder of their own, whose elements know their sample, position and column.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "distill/link_fixture.hpp"
#include "distill/signal_file/reader.hpp"
#include "distill/signal_file/recording.hpp"
#include "distill/signal_file/writer.hpp"

namespace athanor::distill::signal_file::tests {

using distill::tests::make_layout;
using distill::tests::Split;
using distill::tests::value_at;

class ScratchFolder {
 public:
  ScratchFolder() : path_((std::filesystem::temp_directory_path() / "athanor_signals_XXXXXX").string()) {
    if (::mkdtemp(path_.data()) == nullptr) {
      throw std::runtime_error("no scratch folder");
    }
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

constexpr std::int64_t batch = 12;
constexpr std::int64_t seq = 7;
// Steps have temperatures of their own; fields with columns for each have one fixture column a temperature.
inline std::vector<double> temperatures_of(std::int64_t step) {
  return step % 2 == 0 ? std::vector<double>{1.0, 2.5} : std::vector<double>{2.5, 4.0};
}

/// The fields of the link fixture, and one with a column for each temperature.
inline RecordingInfo make_info() {
  RecordingInfo info;
  info.id = 0x1234;
  info.program = "test";
  info.dataset = "text";
  info.mixture = "a:1";
  info.seed = 7;
  info.seq = seq;
  info.teacher = {{"model.hidden", "3"}};
  info.teacher_identity = "co-trained";
  info.fields = {
      {"ids", ElementType::f64, FieldScope::sample, seq, 2, false},
      {"ce", ElementType::f64, FieldScope::sample, seq, 1, false},
      {"state", ElementType::f64, FieldScope::sample, seq, distill::tests::hidden, false},
      {"last", ElementType::f64, FieldScope::sample, seq, distill::tests::hidden, false},
      {"logits", ElementType::f64, FieldScope::sample, seq, distill::tests::vocab, false},
      {"head", ElementType::f64, FieldScope::step, distill::tests::vocab, distill::tests::hidden, false},
      {"lse", ElementType::f64, FieldScope::sample, seq, 1, true}};
  return info;
}

/// What element (sample, position, column) of a field is; a step field: (its step, line, column). Columns of
/// a field with one for each temperature are named by the temperature.
inline std::int64_t element(const FieldInfo& field, std::int64_t sample, std::int64_t position,
                            std::int64_t column, const std::vector<double>& temperatures) {
  const std::int64_t place =
      field.per_temperature ? static_cast<std::int64_t>(temperatures[static_cast<std::size_t>(column)] * 1000)
                            : column;
  return value_at(field.name, 0, sample, position, place);
}

/// The tensor that holds `memory`, whose rows count from sample `base` on; 0 outside `active`.
inline std::vector<std::int64_t> make_tensor(const FieldInfo& field, const Box& memory, const Box& active,
                                             std::int64_t base, const std::vector<double>& temperatures) {
  std::vector<std::int64_t> values;
  const auto& [rows, positions, columns] = memory.dims;
  for (std::int64_t row = rows.first; row < rows.end(); ++row) {
    for (std::int64_t position = positions.first; position < positions.end(); ++position) {
      for (std::int64_t column = columns.first; column < columns.end(); ++column) {
        const Box one{{Range{row, 1}, Range{position, 1}, Range{column, 1}}};
        values.push_back(active.contains(one) ? element(field, base + row, position, column, temperatures)
                                              : 0);
      }
    }
  }
  return values;
}

/// The fixture's fields between a teacher of one rank and a student of this split.
inline std::vector<Field> make_fields(const Split& split, std::int64_t rows, std::size_t num_temperatures) {
  const RoleLayout teacher = make_layout("teacher", 0, {1, 1, 1}, rows, seq);
  const RoleLayout student = make_layout("student", 1, split, rows, seq);
  std::vector<Field> fields = distill::tests::make_plan(teacher, student)->fields();
  fields.push_back(token_field({"lse", static_cast<std::int64_t>(num_temperatures), 8}, teacher, student));
  return fields;
}

inline bool is_first_of_equals(const Field& field, int rank) {
  for (int before = 0; before < rank; ++before) {
    if (field.receiver[static_cast<std::size_t>(before)].active ==
        field.receiver[static_cast<std::size_t>(rank)].active) {
      return false;
    }
  }
  return true;
}

/// A job that records: one writer for each rank of a layout.
class Recorder {
 public:
  Recorder(std::string folder, const Split& split, std::int64_t first_step, std::int64_t end_step)
      : folder_(std::move(folder)), split_(split), end_step_(end_step) {
    PreparedRecording prepared = prepare_recording(folder_, make_info(), first_step, end_step);
    info_ = prepared.info;
    table_ = std::move(prepared.blocks);
    for (int rank = 0; rank < num_ranks(); ++rank) {
      writers_.push_back(std::make_unique<SignalFileWriter>(folder_, info_, static_cast<std::uint32_t>(rank),
                                                            static_cast<std::uint32_t>(num_ranks())));
    }
  }

  int num_ranks() const { return split_.dp * split_.tp; }

  void write(std::int64_t step, int rank) {
    const std::vector<double> temperatures = temperatures_of(step);
    const std::vector<Field> fields = make_fields(split_, batch, temperatures.size());
    const RoleLayout layout = make_layout("student", 1, split_, batch, seq);
    StepData data;
    data.step = step;
    data.teacher_version = step;
    data.outcome = step == 2 ? StepOutcome::skipped : StepOutcome::finite;
    data.step_samples = {step * batch, batch};
    data.rows = layout.rows_of(rank);
    data.temperatures = temperatures;
    std::vector<std::vector<std::int64_t>> tensors(fields.size());
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const FieldShare& share = fields[i].receiver[static_cast<std::size_t>(rank)];
      const auto index = static_cast<std::uint32_t>(info_.field_index(fields[i].name));
      const std::int64_t base = fields[i].cadence == Cadence::step ? step : step * batch;
      tensors[i] = make_tensor(info_.fields[index], share.memory, share.active, base, temperatures);
      if (is_first_of_equals(fields[i], rank) && !share.active.is_empty()) {
        data.parts.push_back(
            {index, share.memory, share.active, reinterpret_cast<const std::byte*>(tensors[i].data())});
      }
    }
    writers_[static_cast<std::size_t>(rank)]->append(data);
  }

  void write(std::int64_t step) {
    for (int rank = 0; rank < num_ranks(); ++rank) {
      write(step, rank);
    }
  }

  void publish(bool is_complete) {
    for (const auto& writer : writers_) {
      const BlockTable own = writer->take_durable();
      table_.add_encoded(own.bytes(), own.count());
    }
    publish_index(folder_, info_, table_, is_complete);
  }

  void write_to_the_end(std::int64_t first_step) {
    for (std::int64_t step = first_step; step < end_step_; ++step) {
      write(step);
    }
    publish(true);
  }

 private:
  std::string folder_;
  Split split_;
  std::int64_t end_step_;
  RecordingInfo info_;
  BlockTable table_;
  std::vector<std::unique_ptr<SignalFileWriter>> writers_;
};

inline void record(const std::string& folder, const Split& split, std::int64_t steps) {
  Recorder(folder, split, 0, steps).write_to_the_end(0);
}

}  // namespace athanor::distill::signal_file::tests
